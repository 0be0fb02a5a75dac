"""What an answer consists of: a verdict and its rule, effects with intervals, and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from study.analysis.questions.robustness import Robustness
from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Estimate, adjust_holm, mean_p_value
from study.analysis.statistics.measures import Measure
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.wording import round_number
from study.config.schema import SCORE_MARGIN

# A verdict needs this share of the planned cells. A cell that diverged has a result, and counts.
MIN_CELLS = 0.8


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row of an answer's table: a number, its uncertainty, and the trials behind it.

    n_pairs: pairs in the estimate. missing: number of planned pairs that are not in it, by reason. bootstrap: ends of
    the bootstrap interval. probability: share of pairs above the measure's line, ties counting half. p_value: adjusted
    for its family. trials: rows of the trial table that the number is computed from. censored: how many of them never
    reached the target and count as one epoch more than they had.
    """

    measure: Measure
    comparison: str
    estimate: Estimate
    n_pairs: int
    n_pairs_planned: int
    missing: Mapping[str, int] = field(default_factory=dict)
    per_replicate: Sequence[float] = ()
    bootstrap: tuple[float, float] | None = None
    probability: float | None = None
    p_value: float | None = None
    trials: Sequence[int] = ()
    censored: int = 0

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
            "probability": round_number(self.probability), "p_value": round_number(self.p_value), "trials": list(self.trials),
            "censored": self.censored,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question, as the report and `answers.json` show it.

    claim: what the verdict is about, in words. factors: the verdict on each factor: whether it moves the choice.
    interim: whether planned trials have not ended yet, so that there is no verdict (`report.registry` sets it).
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
        measure=measure, comparison=comparison, estimate=item.estimate, per_replicate=item.per_replicate,
        n_pairs=item.n_pairs, n_pairs_planned=item.n_pairs_planned, missing=item.missing, bootstrap=item.bootstrap,
        probability=item.probability, p_value=item.p_value, trials=item.trials, censored=item.censored,
    )  # fmt: skip


def covers(n_cells: int, n_cells_diverged: int, n_cells_planned: int) -> bool:
    """Whether enough of the planned cells have a result for a verdict."""
    return n_cells > 0 and n_cells + n_cells_diverged >= MIN_CELLS * n_cells_planned


def confirms(item: PairedDifference) -> bool:
    """Whether the reference gains, with no diverged run of its own whose absence could have caused it."""
    return covers_pairs(item) and item.estimate.above(0) and not item.missing.get(f"{item.reference} diverged")


def refuted(items: Sequence[PairedDifference], confidence: float) -> list[PairedDifference]:
    """The items whose reference gains less than `SCORE_MARGIN`, with no diverged run of the other side.

    One of them is enough to refute a claim, so every comparison adds a chance of error: one-sided p values of a
    gain of `SCORE_MARGIN` or more are adjusted by Holm over all items. For a single item: its interval lies below the
    margin.
    """
    p_values = adjust_holm([mean_p_value(item.per_replicate, SCORE_MARGIN, "less") for item in items])
    return [
        item for item, p_value in zip(items, p_values, strict=True)
        if p_value is not None and p_value < (1 - confidence) / 2
        and covers_pairs(item) and not item.missing.get(f"{item.other} diverged")
    ]  # fmt: skip


def covers_pairs(item: PairedDifference) -> bool:
    """`covers` for a paired difference."""
    return covers(item.n_cells, item.n_cells_diverged, item.n_cells_planned)
