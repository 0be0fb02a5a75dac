"""Rules that turn replicates into intervals: pure functions, each saying what varies in its interval.

The unit is always the replicate: one draw of every seed (initialization, data order, split), shared by all
cells. Cells of one replicate are therefore not independent, and no interval treats them as if they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, the interval it may lie in, and the replicates `n` that say so. None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0

    def above(self, line: float) -> bool:
        """Whether the whole interval lies above the line; False without an interval."""
        return self.low is not None and self.low > line

    def below(self, line: float) -> bool:
        """Whether the whole interval lies below the line; False without an interval."""
        return self.high is not None and self.high < line

    def contains(self, value: float) -> bool:
        """Whether the interval holds the value; False without an interval."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def replicate_interval(values: Sequence[float] | Floats, confidence: float) -> Estimate:
    """Mean and Student t interval of one finite value a replicate.

    What varies: the replicate. One replicate gives no interval, and neither do identical ones: a spread
    of zero (every network at 100 % accuracy, say) is no proof that the next seed would agree.
    """
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        raise ValueError(f"values: {array.tolist()}: allowed are finite numbers")
    if array.size == 0:
        return Estimate()
    mean = float(array.mean())
    if array.size == 1 or is_identical(array):
        return Estimate(value=mean, n=array.size)
    low, high = stats.ttest_1samp(array, 0.0).confidence_interval(confidence)
    return Estimate(value=mean, low=float(low), high=float(high), n=array.size)


def replicates_needed(half_width: float, target: float, n: int, confidence: float) -> int | None:
    """Replicates that would narrow a t interval from `half_width` at `n` to `target`, at the same spread.

    None where 1000 would not do.
    """
    quantile = (1 + confidence) / 2
    spread = half_width * np.sqrt(n) / stats.t.ppf(quantile, n - 1)
    sizes = np.arange(2, 1001)
    enough = sizes[stats.t.ppf(quantile, sizes - 1) * spread / np.sqrt(sizes) <= target]
    return int(enough[0]) if enough.size else None


def cell_numbers(trials: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """A number for each combination of the factors' levels, one a row; all 0 without factors."""
    numbers: pd.Series = pd.Series(0, index=trials.index)
    if factors:
        numbers = trials.groupby(list(factors), sort=False, dropna=False).ngroup()
    return numbers


def complete_block(present: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Cells and replicates of a (cells, replicates) table that are all present, chosen by presence alone.

    Replicates join in order of completeness while (replicates - 1) * cells, the number of comparisons between
    replicates, grows and at least half of the best replicate's cells remain. Returns row and column numbers.
    """
    order = np.argsort(-present.sum(axis=0), kind="stable")
    best: tuple[Numbers, Numbers] = (np.empty(0, np.intp), np.empty(0, np.intp))
    most, best_score = 0, (0, 0)
    for count in range(1, order.size + 1):
        rows = np.flatnonzero(present[:, order[:count]].all(axis=1))
        most = max(most, rows.size)
        score = ((count - 1) * rows.size, rows.size)
        if 2 * rows.size >= most and score > best_score:
            best, best_score = (rows, np.sort(order[:count])), score
    return best


@dataclass(frozen=True, kw_only=True)
class Block:
    """Numbers of finished trials, in the cells and replicates that are all present.

    cells: a row a cell, the columns of the trial table. values: (cell, replicate, number).
    trials: (cell, replicate), rows of the trial table.
    """

    cells: pd.DataFrame
    values: Floats
    trials: Numbers


def select_block(trials: pd.DataFrame, numbers: pd.DataFrame) -> Block:
    """The complete block of cells and replicates of `trials`; `numbers` has a row a key, NaN where there is none."""
    table = numbers.reindex(trials["key"]).to_numpy(dtype=float)
    present = trials["state"].eq("done").to_numpy() & np.isfinite(table).all(axis=1)
    cells = cell_numbers(trials, ["trial_id"])
    places = pd.Series(np.where(present, np.arange(len(trials)), -1),
                       index=pd.MultiIndex.from_arrays([cells, trials["replicate"]]))  # fmt: skip
    grid = places.unstack(fill_value=-1).to_numpy(dtype=np.intp)
    rows, columns = complete_block(grid >= 0)
    grid = grid[np.ix_(rows, columns)]
    return Block(cells=trials.iloc[grid[:, :1].ravel()], values=table[grid], trials=trials.index.to_numpy()[grid])


def replicate_p_value(values: Sequence[float] | Floats) -> float | None:
    """The p value that the mean is 0: the t test that belongs to `replicate_interval`; None where that has none."""
    array = np.asarray(values, dtype=float)
    return None if array.size < 2 or is_identical(array) else float(stats.ttest_1samp(array, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values of a family of tests, adjusted for their number (Holm 1979), in their order; None is no test."""
    tests = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    for number, (value, place) in enumerate(tests):
        before = adjusted[tests[number - 1][1]] if number else None
        adjusted[place] = max(before or 0.0, min(1.0, (len(tests) - number) * value))
    return adjusted


def jackknife_ratio(log_statistic: Callable[[Numbers], float], n: int, confidence: float) -> Estimate:
    """Exponential of a statistic over replicates, with its delete-one jackknife interval."""
    everyone = np.arange(n)
    centre = log_statistic(everyone)
    if not np.isfinite(centre):
        return Estimate(n=n)
    left_out = np.array([log_statistic(np.delete(everyone, gone)) for gone in everyone])
    if n < 3 or not np.isfinite(left_out).all() or is_identical(left_out):
        return Estimate(value=float(np.exp(centre)), n=n)
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    reach = stats.t.ppf((1 + confidence) / 2, n - 1) * error
    with np.errstate(over="ignore"):
        value, low, high = np.exp([centre, centre - reach, centre + reach]).tolist()
    return Estimate(value=value, low=low, high=high, n=n) if np.isfinite(high) else Estimate(value=value, n=n)


def is_identical(values: Floats) -> bool:
    """Whether all values are the same, up to rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
