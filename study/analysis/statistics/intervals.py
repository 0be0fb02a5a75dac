"""Intervals and p values over replicates: pure functions, each of which states what varies in its interval.

The unit is always the replicate: one draw of every seed (initialization, data order, split), shared by all
cells. Cells of one replicate are therefore not independent, and no interval treats them as if they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its interval, and the number `n` of replicates behind it. A value that is not defined is None.

    freedom: degrees of freedom of Student's t interval; None without an interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    freedom: float | None = None

    def above(self, line: float) -> bool:
        """Whether the whole interval lies above the line; False without an interval."""
        return self.low is not None and self.low > line

    def below(self, line: float) -> bool:
        """Whether the whole interval lies below the line; False without an interval."""
        return self.high is not None and self.high < line

    def excludes(self, line: float) -> bool:
        """Whether the whole interval lies on one side of the line; False without an interval."""
        return self.above(line) or self.below(line)

    def contains(self, value: float) -> bool:
        """Whether the interval holds the value; False without an interval."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def replicate_interval(values: Sequence[float] | Floats, confidence: float) -> Estimate:
    """Mean and Student t interval of one finite value per replicate.

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
    return Estimate(value=mean, low=float(low), high=float(high), n=array.size, freedom=array.size - 1)


def bootstrap_interval(values: Sequence[float] | Floats, confidence: float) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of one value per replicate; None below three distinct ones.

    Each value is a replicate's mean over all cells of the complete block, so a resample draws whole replicates and
    keeps every cell, because the cells are fixed by the plan. Cells of a replicate share its seeds: resampling each
    cell's replicates separately, as is right for independent runs (Agarwal et al. 2021, rliable), would make the
    interval too narrow. With few replicates it is too narrow even so: on normal values 95 % intervals cover 79, 89 and
    93 % at 4, 8 and 20 replicates, where Student's t covers 95 %. It is shown beside the t interval and never decides.
    """
    array = np.asarray(values, dtype=float)
    if np.unique(array).size < 3 or is_identical(array):
        return None
    found = stats.bootstrap(
        (array,), np.mean, confidence_level=confidence, method="percentile", vectorized=True,
        rng=np.random.default_rng([7, array.size]),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_p_value(
    values: Sequence[float] | Floats, line: float = 0.0, alternative: Literal["two-sided", "less"] = "two-sided"
) -> float | None:
    """P value of Student's t test that the mean of one value per replicate is at the line (`less`: at or above it).

    It agrees with `replicate_interval`: p < 1 - confidence where the interval excludes the line, and with `less`
    p < (1 - confidence) / 2 where the interval lies below the line. None where there is no interval.
    """
    array = np.asarray(values, dtype=float)
    if array.size < 2 or is_identical(array):
        return None
    return float(stats.ttest_1samp(array, line, alternative=alternative).pvalue)


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values of a family of tests, adjusted by Holm (1979), which controls the family-wise error rate.

    None stands for a test that cannot be made yet: it counts as p = 1 and stays None.
    """
    known = np.array([1.0 if value is None else value for value in p_values])
    order = np.argsort(known, kind="stable")
    stepped = np.maximum.accumulate(known[order] * np.arange(known.size, 0, -1))
    adjusted = dict(zip(order.tolist(), np.minimum(stepped, 1).tolist(), strict=True))
    return [None if value is None else adjusted[number] for number, value in enumerate(p_values)]


def replicates_needed(half_width: float, target: float, n: int, confidence: float) -> int | None:
    """Number of replicates that would narrow a t interval from `half_width` at `n` to `target`, at the same spread.

    None if more than 1000 would be needed.
    """
    quantile = (1 + confidence) / 2
    spread = half_width * np.sqrt(n) / stats.t.ppf(quantile, n - 1)
    sizes = np.arange(2, 1001)
    enough = sizes[stats.t.ppf(quantile, sizes - 1) * spread / np.sqrt(sizes) <= target]
    return int(enough[0]) if enough.size else None


def cell_numbers(trials: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """For each row the number of its combination of the factors' levels; all 0 without factors."""
    numbers: pd.Series = pd.Series(0, index=trials.index)
    if factors:
        numbers = trials.groupby(list(factors), sort=False, dropna=False).ngroup()
    return numbers


def complete_block(present: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Row and column numbers of a block of a (cell, replicate) table in which everything is present.

    Replicates are added in order of completeness while (replicates - 1) * cells, the number of comparisons between
    replicates, grows and at least half of the best replicate's cells remain. Only presence matters, never a value.
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

    cells: one row per cell, the columns of the trial table. values: (cell, replicate, number).
    trials: (cell, replicate), rows of the trial table.
    """

    cells: pd.DataFrame
    values: Floats
    trials: Numbers


def select_block(trials: pd.DataFrame, numbers: pd.DataFrame) -> Block:
    """The complete block of cells and replicates of `trials`; `numbers` has one row per key, NaN for missing values."""
    table = numbers.reindex(trials["key"]).to_numpy(dtype=float)
    present = trials["state"].eq("done").to_numpy() & np.isfinite(table).all(axis=1)
    cells = cell_numbers(trials, ["trial_id"])
    places = pd.Series(np.where(present, np.arange(len(trials)), -1),
                       index=pd.MultiIndex.from_arrays([cells, trials["replicate"]]))  # fmt: skip
    grid = places.unstack(fill_value=-1).to_numpy(dtype=np.intp)
    rows, columns = complete_block(grid >= 0)
    grid = grid[np.ix_(rows, columns)]
    return Block(cells=trials.iloc[grid[:, :1].ravel()], values=table[grid], trials=trials.index.to_numpy()[grid])


def jackknife(statistic: Callable[[Numbers], float], n: int, confidence: float) -> Estimate:
    """A statistic of replicates with its delete-one jackknife interval (Student t).

    statistic: takes the numbers of the replicates to use, of 0 to n - 1.
    What varies: the replicate. Fewer than three give no interval, and neither do identical ones.
    """
    everyone = np.arange(n)
    value = statistic(everyone)
    if not np.isfinite(value):
        return Estimate(n=n)
    left_out = np.array([statistic(np.delete(everyone, gone)) for gone in everyone])
    if n < 3 or not np.isfinite(left_out).all() or is_identical(left_out):
        return Estimate(value=value, n=n)
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    return Estimate(value=value, low=value - reach, high=value + reach, n=n, freedom=n - 1)


def jackknife_ratio(log_statistic: Callable[[Numbers], float], n: int, confidence: float) -> Estimate:
    """The exponential of a statistic of replicates, and of its jackknife interval."""
    log = jackknife(log_statistic, n, confidence)
    with np.errstate(over="ignore"):
        ends = [None if end is None else float(np.exp(end)) for end in (log.value, log.low, log.high)]
    value, low, high = ends
    return Estimate(value=value, low=low, high=high, n=n) if high != np.inf else Estimate(value=value, n=n)


def ratio_p_value(ratio: Estimate, line: float, confidence: float) -> float | None:
    """One-sided p value of the hypothesis that a ratio is no larger than the line; 1 - p is that of the opposite one.

    Computed from the t interval of the ratio's logarithm, and consistent with it: p < (1 - confidence) / 2 where the
    whole interval lies above the line. None without an interval.
    """
    if not (ratio.value and ratio.low and ratio.high):
        return None
    error = np.log(ratio.high / ratio.low) / 2 / stats.t.ppf((1 + confidence) / 2, ratio.n - 1)
    return float(stats.t.sf(np.log(ratio.value / line) / error, ratio.n - 1))


def is_identical(values: Floats) -> bool:
    """Whether all values are the same, up to rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
