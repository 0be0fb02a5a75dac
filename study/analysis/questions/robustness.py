"""What other defensible analyses would have said: every combination of the choices that an analysis has to make.

The planned analysis decides. An analysis that differs from it in one choice is its neighbor, and a verdict that a
neighbor does not share is fragile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Estimate
from study.analysis.wording import format_verdict, join_words, round_number
from study.plan.analysis_plan import LAST_EPOCH

LAST_FIFTH = "mean of the last fifth"
CLAIM = "the claim"  # names the verdict of the whole question among those of its factors


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One analysis and its verdicts.

    choices: its value of each choice, by the name of the choice ("distance": "Aitchison").
    verdict: on the claim. factors: on each factor.
    estimates: the displacements of factors, or differences between norms, in the unit of this analysis.
    margin: with which they are compared, in the same unit.
    """

    choices: Mapping[str, str]
    verdict: Verdict
    factors: Mapping[str, Verdict] = field(default_factory=dict)
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    margin: float = 0.0

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on the claim, by the name `CLAIM`, and on each factor."""
        return {CLAIM: self.verdict, **self.factors}

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to 6 digits."""
        return {
            "choices": dict(self.choices), "verdict": self.verdict, "factors": dict(self.factors),
            "estimates": {name: round_number(each.value) for name, each in self.estimates.items()},
            "margin": round_number(self.margin),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The planned analysis and all others. analyses: every combination of choices, the planned one first."""

    analyses: Sequence[Analysis]

    @property
    def planned(self) -> Analysis:
        return self.analyses[0]

    @property
    def neighbors(self) -> dict[str, Analysis]:
        """The analyses that differ from the planned one in a single choice, by that choice: "distance: Aitchison"."""
        found = {}
        for each in self.analyses[1:]:
            differing = [name for name, value in each.choices.items() if value != self.planned.choices[name]]
            if len(differing) == 1:
                found[f"{differing[0]}: {each.choices[differing[0]]}"] = each
        return found

    @property
    def changes(self) -> dict[str, dict[str, Verdict]]:
        """The verdicts that neighbors do not share, by their choice and the name of the claim or factor."""
        planned = self.planned.verdicts
        found = {
            choice: {name: verdict for name, verdict in each.verdicts.items() if verdict != planned.get(name, verdict)}
            for choice, each in self.neighbors.items()
        }
        return {choice: verdicts for choice, verdicts in found.items() if verdicts}

    @property
    def has_estimates(self) -> bool:
        """Whether there is any number that could have been another one."""
        return any(each.value is not None for analysis in self.analyses for each in analysis.estimates.values())

    @property
    def fragile(self) -> list[str]:
        """What has a fragile verdict: the claim, by the name `CLAIM`, and factors."""
        names = [name for verdicts in self.changes.values() for name in verdicts]
        return [name for name in self.planned.verdicts if name in names]

    @property
    def is_fragile(self) -> bool:
        """Whether the verdict on the claim is fragile."""
        return CLAIM in self.fragile

    def count_agreeing(self, name: str = CLAIM) -> int:
        """The number of analyses, the planned one among them, that give the planned verdict."""
        planned = self.planned.verdicts[name]
        return sum(each.verdicts.get(name) == planned for each in self.analyses)


def format_agreement(robustness: Robustness) -> str:
    """How many analyses agree: `48 of 54 analyses agree on the claim (6: evidence against) and 54 on depth.`."""
    planned = robustness.planned.verdicts
    parts: list[str] = []
    for name, verdict in planned.items():
        others = Counter(each.verdicts.get(name, verdict) for each in robustness.analyses)
        del others[verdict]
        said = ", ".join(f"{number}: {format_verdict(other)}" for other, number in others.most_common())
        of = "" if parts else f" of {len(robustness.analyses)} analyses agree"
        parts.append(f"{robustness.count_agreeing(name)}{of} on {name}" + f" ({said})" * bool(others))
    return f"{join_words(parts)}."


def format_fragile(robustness: Robustness) -> str:
    """What is fragile: `Fragile: with the Aitchison distance, the claim has "supported".`; or that nothing is."""
    changes = robustness.changes
    if not changes:
        return "No verdict changes if a single choice is made in another way."
    parts = []
    for choice, verdicts in changes.items():
        groups: dict[Verdict, list[str]] = {}
        for name, verdict in verdicts.items():
            groups.setdefault(verdict, []).append(name)
        said = [f'{join_words(names)} {_have(names)} "{format_verdict(verdict)}"' for verdict, names in groups.items()]
        parts.append(f"{_format_choice(choice)}, {join_words(said)}")
    return f"Fragile: {'; '.join(parts)}."


def format_fragile_choices(robustness: Robustness) -> str:
    """`with the Aitchison distance`: the choices that change the verdict on the claim, for a line of a terminal."""
    return join_words(
        _format_choice(choice) for choice, verdicts in robustness.changes.items() if CLAIM in verdicts
    )  # fmt: skip


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _format_choice(choice: str) -> str:
    """A choice of a neighbor, such as "distance: Aitchison", in words."""
    name, _, value = choice.partition(": ")
    return {
        "distance": f"with the {value} distance",
        "alignment": f"with layers matched by {value}",
        "statistic": f"with the weights of {value} alone",
        "moment": f"with the {value}" if value == LAST_EPOCH else "with the mean over the last fifth of the epochs",
        "metric": f"by {value}",
        "divergence": f"with {value}",
    }[name]
