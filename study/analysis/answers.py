"""What an answer is made of: a verdict, the rule behind it, effects with intervals, and sentences with numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from study.analysis.statistics import Estimate, PairedDifference, replicates_needed

Verdict = Literal["supported", "not supported", "not enough evidence"]

MIN_CELLS = (
    0.8  # a verdict needs this share of the planned cells; a cell that diverged is a result and counts
)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row of an answer's table. `n` counts replicates; without an interval, `low` and `high` are None."""

    measure: str
    comparison: str
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    n_pairs: int
    n_pairs_planned: int
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)
    per_replicate: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question, as the report and `answers.json` show it."""

    name: str
    title: str
    verdict: Verdict
    answer: str
    rule: str
    effects: Sequence[Effect]
    n_done: int
    n_planned: int
    needs: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers rounded to 6 digits, so that the last bit of a sum changes no byte."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items() if key != "name"}


def difference_effect(measure: str, comparison: str, item: PairedDifference) -> Effect:
    """The row of a paired difference."""
    return Effect(
        measure=measure, comparison=comparison,
        estimate=item.estimate.value, low=item.estimate.low, high=item.estimate.high, n=item.estimate.n,
        n_pairs=item.n_pairs, n_pairs_planned=item.n_pairs_planned,
        missing=item.missing, per_replicate=item.per_replicate,
    )  # fmt: skip


def covers(n_cells: int, n_cells_diverged: int, n_cells_planned: int) -> bool:
    """Whether enough of the planned cells have a result for a verdict; a cell that diverged has one."""
    return n_cells > 0 and n_cells + n_cells_diverged >= MIN_CELLS * n_cells_planned


def show_number(value: float, digits: int = 3, sign: bool = False) -> str:
    """`-0.0123` as `−0.012`; a number that rounds to zero has no sign."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def show_estimate(estimate: Estimate, confidence: float, digits: int = 3, sign: bool = False) -> str:
    """`+0.012 (95 % interval 0.004 to 0.020, n = 5 replicates)`, or why there is no interval."""
    if estimate.value is None:
        return "not measured"
    value, replicates = show_number(estimate.value, digits, sign), count(estimate.n, "replicate")
    if estimate.low is None or estimate.high is None:
        return f"{value} (no interval from n = {replicates})"
    low, high = show_number(estimate.low, digits), show_number(estimate.high, digits)
    return f"{value} ({confidence * 100:g} % interval {low} to {high}, n = {replicates})"


def show_states(states: Mapping[str, int]) -> str:
    """`2 failed, 3 planned`; `none` where there is nothing."""
    return ", ".join(f"{number} {state}" for state, number in states.items()) or "none"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def join_words(words: Sequence[object]) -> str:
    """`a, b and c`."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def need_replicates(half_width: float, target: float, n: int, confidence: float) -> str:
    """How many replicates would settle it, if their spread stays as it is."""
    needed = replicates_needed(half_width, target, n, confidence)
    return (
        f"about {needed} replicates"
        if needed
        else "more than 1000 replicates: the effect is too close to the line"
    )


def tally(states: Sequence[str]) -> dict[str, int]:
    """States with their number, the most frequent first."""
    return dict(sorted(Counter(states).items(), key=lambda item: (-item[1], item[0])))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
