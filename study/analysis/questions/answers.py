"""What an answer is made of: a verdict and its rule, effects with intervals, and sentences with numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from study.analysis.statistics.intervals import Estimate, adjust_holm, mean_p_value, replicates_needed
from study.analysis.statistics.measures import Measure
from study.analysis.statistics.paired_differences import PairedDifference
from study.config.schema import SCORE_MARGIN

Verdict = Literal["supported", "not supported", "not enough evidence"]

# A verdict needs this share of the planned cells. A cell that diverged has a result, and counts.
MIN_CELLS = 0.8


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row of an answer's table: a number, how sure it is, and what it is made of.

    Pairs are those in the estimate; `missing` says why others are not. bootstrap: the ends of the bootstrap interval.
    probability: that a pair, drawn at random, lies above the measure's line. p_value: adjusted for its family.
    trials: rows of the trial table that the number is made of. censored: how many of them count as one epoch more
    than they had, as they never reached the target.
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
        low, high = _round(self.estimate.low), _round(self.estimate.high)
        return {
            "measure": self.measure.name, "rule": self.measure.rule_name, "comparison": self.comparison,
            "estimate": _round(self.estimate.value),
            "interval": None if low is None else [low, high], "n": self.estimate.n,
            "n_pairs": self.n_pairs, "n_pairs_planned": self.n_pairs_planned, "missing": dict(self.missing),
            "per_replicate": [_round(value) for value in self.per_replicate],
            "bootstrap": self.bootstrap and [_round(end) for end in self.bootstrap],
            "probability": _round(self.probability), "p_value": _round(self.p_value), "trials": list(self.trials),
            "censored": self.censored,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question, as the report and `answers.json` show it."""

    title: str
    verdict: Verdict
    answer: str
    rule: str
    effects: Sequence[Effect]
    n_done: int
    n_planned: int
    needs: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        effects = [effect.to_json() for effect in self.effects]
        return {**vars(self), "effects": effects, "needs": list(self.needs)}


def difference_effects(measure: Measure, items: Sequence[PairedDifference]) -> list[Effect]:
    """The rows of a measure's paired differences. Those with the same reference are a family of tests."""
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
    """The row of a paired difference that is a family by itself."""
    return Effect(
        measure=measure, comparison=comparison, estimate=item.estimate, per_replicate=item.per_replicate,
        n_pairs=item.n_pairs, n_pairs_planned=item.n_pairs_planned, missing=item.missing, bootstrap=item.bootstrap,
        probability=item.probability, p_value=item.p_value, trials=item.trials, censored=item.censored,
    )  # fmt: skip


def covers(n_cells: int, n_cells_diverged: int, n_cells_planned: int) -> bool:
    """Whether enough of the planned cells have a result for a verdict."""
    return n_cells > 0 and n_cells + n_cells_diverged >= MIN_CELLS * n_cells_planned


def confirms(item: PairedDifference) -> bool:
    """Whether the reference gains, whatever runs of its own that diverged would have had."""
    return covers_pairs(item) and item.estimate.above(0) and not item.missing.get(f"{item.reference} diverged")


def refuted(items: Sequence[PairedDifference], confidence: float) -> list[PairedDifference]:
    """Those over which the reference gains less than `SCORE_MARGIN`, whatever runs of theirs that diverged would have had.

    One of them is enough to refute, so each gives chance a try: one-sided p-values of a gain of `SCORE_MARGIN` or more are
    adjusted by Holm over all items. Of a single item this says that its interval lies below `SCORE_MARGIN`.
    """
    p_values = adjust_holm([mean_p_value(item.per_replicate, SCORE_MARGIN, "less") for item in items])
    return [
        item for item, p_value in zip(items, p_values, strict=True)
        if p_value is not None and p_value < (1 - confidence) / 2
        and covers_pairs(item) and not item.missing.get(f"{item.other} diverged")
    ]  # fmt: skip


def covers_pairs(item: PairedDifference) -> bool:
    """`covers`, of a paired difference."""
    return covers(item.n_cells, item.n_cells_diverged, item.n_cells_planned)


def format_distinguished(subject: str, items: Sequence[PairedDifference], confidence: float) -> str:
    """Which differences of "Its training loss" p-values adjusted over `items` tell apart; the table has the numbers."""
    p_values = adjust_holm([item.p_value for item in items])
    apart = {id(item) for item, p in zip(items, p_values, strict=True) if p is not None and p < 1 - confidence}
    lower = [item for item in items if id(item) in apart and (item.estimate.value or 0) < 0]
    higher = [item for item in items if id(item) in apart and item not in lower]
    open_ = [item for item in items if id(item) not in apart]
    groups = {"lower than that of": lower, "higher than that of": higher, "not told apart from that of": open_}
    said = [f"{words} {join_words(item.other for item in group)}" for words, group in groups.items() if group]
    return f"{subject} is {join_words(said)}."


def format_number(value: float, digits: int = 3, sign: bool = False) -> str:
    """`-0.0123` as `-0.012`; a number that rounds to zero has no sign. ASCII, for any terminal."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def format_estimate(estimate: Estimate, confidence: float, digits: int = 3, sign: bool = False) -> str:
    """`+0.012 (95 % interval 0.004 to 0.020, n = 5 replicates)`, or that there is no interval."""
    if estimate.value is None:
        return "not measured"
    value = format_number(estimate.value, digits, sign)
    replicates = f"n = {estimate.n} replicate{'s' if estimate.n != 1 else ''}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (no interval from {replicates})"
    low, high = format_number(estimate.low, digits), format_number(estimate.high, digits)
    return f"{value} ({confidence * 100:g} % interval {low} to {high}, {replicates})"


def format_states(states: Iterable[str]) -> str:
    """`3 planned, 2 failed`, the most frequent first; `none` where there is nothing."""
    ranked = sorted(Counter(states).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {state}" for state, number in ranked) or "none"


def join_words(words: Iterable[object]) -> str:
    """`a, b and c`."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def format_replicates_needed(half_width: float, target: float, n: int, confidence: float) -> str:
    """What would settle an interval, if the replicates' spread stays as it is."""
    return format_more_replicates(replicates_needed(half_width, target, n, confidence), n)


def format_more_replicates(needed: int | None, n: int) -> str:
    """How many replicates there must be beside the `n` there are; None: more than can be said."""
    if needed is None:
        return "more than 1000 replicates"
    more = max(needed - n, 1)
    return f"about {more} more replicate{'s' * (more > 1)} of every cell ({n + more} in all), at the spread seen so far"


def split_sentences(text: str) -> list[str]:
    """The sentences of an answer or a rule, as a page or a terminal sets them apart."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
