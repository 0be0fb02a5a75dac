"""What an answer consists of: a verdict and its rule, effects with intervals, and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from study.analysis.questions.robustness import Robustness
from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Estimate, adjust_holm
from study.analysis.statistics.measures import Measure
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.wording import round_number


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row of an answer's table: a number, its uncertainty, and the trials behind it.

    n_pairs: pairs in the estimate. missing: number of planned pairs that are not in it, by reason. bootstrap: ends of
    the bootstrap interval. share_above: share of pairs above the measure's line, ties counting half. p_value: adjusted
    for its family. trials: rows of the trial table that the number is computed from. censored: how many of them never
    reached the target and count as one epoch more than they had. n_at_chance: how many of the pairs count with the
    score of guessing, because every run of a norm diverged in their cell.
    """

    measure: Measure
    comparison: str
    estimate: Estimate
    n_pairs: int
    n_pairs_planned: int
    missing: Mapping[str, int] = field(default_factory=dict)
    per_replicate: Sequence[float] = ()
    bootstrap: tuple[float, float] | None = None
    share_above: float | None = None
    p_value: float | None = None
    trials: Sequence[int] = ()
    censored: int = 0
    n_at_chance: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to 6 digits: the last bit of a sum changes no byte of `answers.json`."""
        low, high = round_number(self.estimate.low), round_number(self.estimate.high)
        return {
            "measure": self.measure.name, "rule": self.measure.rule_name, "comparison": self.comparison,
            "estimate": round_number(self.estimate.value),
            "interval": None if low is None else [low, high], "n": self.estimate.n,
            "n_pairs": self.n_pairs, "n_pairs_planned": self.n_pairs_planned, "missing": dict(self.missing),
            "per_replicate": [round_number(value) for value in self.per_replicate],
            "bootstrap": self.bootstrap and [round_number(end) for end in self.bootstrap],
            "share_above": round_number(self.share_above), "p_value": round_number(self.p_value),
            "trials": list(self.trials),
            "censored": self.censored, "n_at_chance": self.n_at_chance,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdicts of an answer with the numbers that decide, without anything that is only shown."""

    verdict: Verdict
    effects: Sequence[Effect]
    factors: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question, as the report and `answers.json` show it.

    claim: what the verdict is about, in words. factors: the verdict on each factor: whether it moves the choice.
    interim: whether planned trials have not ended yet, so that there is no verdict (`report.registry` sets it).
    planned_verdict: the verdict by the plan, where settings that decide were changed after there were results
        (`report.registry` sets it); None where nothing was changed.
    robustness: what other analyses would have said; None where that was not computed, as in interim answers.
    """

    title: str
    verdict: Verdict
    answer: str
    rule: str
    effects: Sequence[Effect]
    n_done: int
    n_planned: int
    needs: Sequence[str]
    claim: str = ""
    factors: Mapping[str, Verdict] = field(default_factory=dict)
    interim: bool = False
    planned_verdict: Verdict | None = None
    robustness: Robustness | None = None

    @property
    def fragile(self) -> bool | None:
        """Whether an analysis that differs from the planned one in a single choice gives another verdict."""
        return None if self.robustness is None else self.robustness.is_fragile

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            **vars(self), "effects": [effect.to_json() for effect in self.effects], "needs": list(self.needs),
            "factors": dict(self.factors), "fragile": self.fragile,
            "fragile_factors": [name for name in self.factors if self.robustness and name in self.robustness.fragile],
            "robustness": [each.to_json() for each in (self.robustness.analyses if self.robustness else ())],
        }  # fmt: skip


def difference_effects(measure: Measure, items: Sequence[PairedDifference]) -> list[Effect]:
    """Rows for paired differences of a measure. Those with the same reference are a family of tests."""
    families = [
        [item for item in items if item.reference == reference]
        for reference in dict.fromkeys(item.reference for item in items)
    ]
    return [
        replace(difference_effect(measure, f"{item.reference} - {item.other}", item), p_value=p_value)
        for family in families
        for item, p_value in zip(family, adjust_holm([item.p_value for item in family]), strict=True)
    ]


def difference_effect(measure: Measure, comparison: str, item: PairedDifference) -> Effect:
    """The row for a paired difference that is tested alone: its p value is not adjusted."""
    return Effect(
        measure=measure, comparison=comparison + item.scope, estimate=item.estimate, per_replicate=item.per_replicate,
        n_pairs=item.n_pairs, n_pairs_planned=item.n_pairs_planned, missing=item.missing, bootstrap=item.bootstrap,
        share_above=item.share_above, p_value=item.p_value, trials=item.trials, censored=item.censored,
        n_at_chance=item.n_at_chance,
    )  # fmt: skip


def cell_effects(measure: Measure, item: PairedDifference) -> list[Effect]:
    """Rows for the single cells of a paired difference. Intervals and p values are adjusted for their number."""
    return [
        Effect(
            measure=measure, comparison=f"{item.reference} - {item.other} at {cell.name}", estimate=cell.estimate,
            n_pairs=cell.n_pairs, n_pairs_planned=cell.n_pairs_planned, p_value=cell.p_value, trials=cell.trials,
            n_at_chance=cell.n_at_chance,
        )
        for cell in item.cells
    ]  # fmt: skip


def interaction_effects(measure: Measure, items: Sequence[PairedDifference]) -> list[Effect]:
    """Rows for the interaction tests of paired differences; p values are adjusted over all of them."""
    tested = [(item, item.interaction) for item in items if item.interaction is not None]
    p_values = adjust_holm([found.p_value for _, found in tested])
    return [
        Effect(
            measure=measure, estimate=found.estimate, p_value=p_value, trials=item.trials,
            comparison=f"{item.reference} - {item.other} at {item.cells[found.cell].name}, minus other cells",
            n_pairs=item.n_pairs, n_pairs_planned=item.n_pairs_planned,
        )
        for (item, found), p_value in zip(tested, p_values, strict=True)
    ]  # fmt: skip
