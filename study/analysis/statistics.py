"""Rules that turn replicates into intervals: pure functions, each saying what varies in its interval.

The unit is always the replicate: one draw of every seed (initialization, data order, split), shared by all
cells. Cells of one replicate are therefore not independent, and no interval treats them as if they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon

from study.norms.names import NORMALIZERS

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]

STATISTICS = ("mean", "var")
DEPTH_GRID = np.linspace(0, 1, 11)  # relative depths at which networks of different depth are compared


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
    if array.size == 1 or _identical(array):
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


# ------------------------------------------------------------------------------------- paired differences


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Reference minus other, paired at equal cell (every other factor) and equal replicate.

    `missing` counts the planned pairs without a number by the side and state that caused it ("bn diverged").
    `n_cells` are in the estimate; `n_cells_diverged` are not, for a run that diverged.
    """

    reference: object
    other: object
    estimate: Estimate
    per_replicate: tuple[float, ...]
    n_pairs: int
    n_pairs_planned: int
    n_cells: int
    n_cells_diverged: int
    n_cells_planned: int
    missing: dict[str, int]


def paired_differences(
    trials: pd.DataFrame,
    *,
    factors: Sequence[str],
    factor: str,
    reference: object,
    other: object,
    metric: str,
    confidence: float,
) -> PairedDifference:
    """The difference of `metric` between two levels of `factor`, averaged over cells inside each replicate.

    What varies in the interval: the replicate. The cells are those of the plan, not a sample of cells. Only
    cells that every counted replicate holds enter (`complete_block`), so replicates differ by seeds alone.
    `trials` has one row a planned trial: a column a factor, `replicate`, `state`, and `metric`.
    """
    cells = cell_numbers(trials, [name for name in factors if name != factor])
    done = trials["state"].eq("done")
    values = trials[metric].astype(float).where(done)
    states = trials["state"].mask(done & values.isna(), f"without {metric}")
    index = [cells.rename("cell"), trials["replicate"]]
    table = pd.DataFrame({"level": trials[factor], "value": values, "state": states}).set_index(index)
    first, second = (table[[item == level for item in table["level"]]] for level in (reference, other))
    planned = first.index.intersection(second.index)
    difference = first["value"].loc[planned] - second["value"].loc[planned]
    causes = _missing_causes(difference, {_say(factor, reference): first, _say(factor, other): second})
    grid = difference.unstack("replicate")
    rows, columns = complete_block(grid.notna().to_numpy())
    per_replicate = grid.to_numpy()[np.ix_(rows, columns)].mean(axis=0) if rows.size else np.empty(0)
    diverged = {cell for (cell, _), cause in causes.items() if "diverged" in cause} - set(grid.index[rows])
    return PairedDifference(
        reference=reference, other=other,
        estimate=replicate_interval(per_replicate, confidence), per_replicate=tuple(per_replicate.tolist()),
        n_pairs=rows.size * columns.size, n_pairs_planned=len(planned),
        n_cells=rows.size, n_cells_diverged=len(diverged), n_cells_planned=len(grid),
        missing=dict(sorted(Counter(causes.values()).items())),
    )  # fmt: skip


def _missing_causes(difference: pd.Series, sides: Mapping[str, pd.DataFrame]) -> dict[tuple[int, int], str]:
    """Why a pair (cell, replicate) has no difference: "sn planned and bn diverged"."""
    missing = difference.index[difference.isna()]
    states = {name: side[side["value"].isna()]["state"].to_dict() for name, side in sides.items()}
    return {
        pair: " and ".join(f"{name} {lost[pair]}" for name, lost in states.items() if pair in lost) for pair in missing
    }


def _say(factor: str, level: object) -> str:
    return level if isinstance(level, str) else f"{factor} {level!r}"


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


# ---------------------------------------------------------------------------- profiles of switch weights


def depth_profiles(switch: pd.DataFrame) -> dict[str, Floats]:
    """What every network chose, by key and relative depth: arrays (statistic, depth of `DEPTH_GRID`, normalizer).

    `switch` has the rows of one epoch of each trial: key, depth_fraction, statistic, normalizer, weight. Layers at
    equal depth are averaged; a normalizer outside the pool has weight 0; weights sum to 1 over normalizers.
    """
    if switch.empty:
        return {}
    # All networks in one table: a table a network takes longer to make than to fill.
    by = ["key", "depth_fraction", "statistic", "normalizer"]
    wanted = pd.MultiIndex.from_product([STATISTICS, NORMALIZERS])
    table = switch.groupby(by, observed=True)["weight"].mean().unstack(["statistic", "normalizer"])
    table = table.reindex(columns=wanted).fillna(0.0).sort_index()
    keys, depths = (table.index.get_level_values(level) for level in ("key", "depth_fraction"))
    networks, starts = np.unique(keys.to_numpy(dtype=str), return_index=True)
    parts = (np.split(values, starts[1:]) for values in (depths.to_numpy(dtype=float), table.to_numpy(dtype=float)))
    return {str(key): _profile(*part) for key, *part in zip(networks, *parts, strict=True)}


def _profile(depths: Floats, weights: Floats) -> Floats:
    """Weights (layer, statistic and normalizer) of one network, interpolated to `DEPTH_GRID`."""
    columns = [np.interp(DEPTH_GRID, depths, column) for column in weights.T]
    profile = np.stack(columns).reshape(len(STATISTICS), len(NORMALIZERS), DEPTH_GRID.size).swapaxes(1, 2)
    return np.asarray(profile / profile.sum(axis=-1, keepdims=True), dtype=float)


def profile_distance(first: Floats, second: Floats) -> Floats:
    """Jensen-Shannon distance (base 2, from 0 to 1) of profiles (..., statistic, depth, normalizer).

    Averaged over depth; returns (..., statistic). Leading axes are broadcast.
    """
    first, second = np.broadcast_arrays(first, second)
    with np.errstate(invalid="ignore"):  # equal profiles may round to the root of a tiny negative number
        distance = np.asarray(jensenshannon(first, second, base=2, axis=-1))
    return np.asarray(np.nan_to_num(distance).mean(axis=-1), dtype=float)


@dataclass(frozen=True, kw_only=True)
class FactorDistances:
    """Distances between replicates r and s, arrays (replicate, replicate, statistic), averaged over cells.

    `between`: two cells that differ in the factor alone; `within`: one cell with itself, over the same cells.
    """

    between: Floats
    within: Floats


def factor_distances(profiles: Floats, cells: pd.DataFrame, factor: str) -> FactorDistances:
    """Distances that a factor's levels make and distances that seeds make, over the same cells.

    `profiles` is (cell, replicate, statistic, depth, normalizer); `cells` a row a cell, a column a factor.
    Cells are grouped by all other factors; groups of two levels or more count, each group equally.
    Raises `ValueError` where no two cells differ in the factor alone.
    """
    between, within = [], []
    for pairs in _comparable_pairs(cells, factor):
        members = sorted({cell for pair in pairs for cell in pair})
        between.append(np.mean([_replicate_distances(profiles[a], profiles[b]) for a, b in pairs], axis=0))
        within.append(np.mean([_replicate_distances(profiles[a], profiles[a]) for a in members], axis=0))
    if not between:
        raise ValueError(f"{factor}: no two cells differ in it alone")
    return FactorDistances(between=np.mean(between, axis=0), within=np.mean(within, axis=0))


def count_cell_pairs(cells: pd.DataFrame, factor: str) -> int:
    """Pairs of cells that differ in the factor alone."""
    return sum(map(len, _comparable_pairs(cells, factor)))


def factor_effect(distances: FactorDistances, confidence: float, statistic: str | None = None) -> Estimate:
    """How far a factor moves the choice over how far seeds alone move it: D_factor / D_seed, 1 for no effect.

    Both are taken between different replicates: at equal replicate, cells share their seeds and lie closer
    than seeds would put them. `statistic` takes the mean or the variance weights alone.
    What varies in the interval: the replicate (jackknife of the log ratio, Student t; at least 3 replicates).
    It is wide rather than narrow: without an effect, fewer than 5 % of 95 % intervals miss 1.
    """
    return _jackknife(lambda keep: _log_ratio(distances, keep, statistic), len(distances.between), confidence)


def effect_contrast(strong: FactorDistances, weak: FactorDistances, confidence: float) -> Estimate:
    """The ratio of two factors' effects: above 1 where the first moves the choice further than the second.

    Both need the same replicates in the same order. What varies in the interval: as in `factor_effect`.
    """
    return _jackknife(lambda keep: _log_ratio(strong, keep) - _log_ratio(weak, keep), len(strong.between), confidence)


def _comparable_pairs(cells: pd.DataFrame, factor: str) -> list[list[tuple[int, int]]]:
    """Row numbers of cells that differ in the factor and agree in every other, grouped by where they agree."""
    numbers = cell_numbers(cells, [str(name) for name in cells if name != factor]).to_numpy()
    levels = cells[factor].tolist()
    groups = (combinations(np.flatnonzero(numbers == number).tolist(), 2) for number in np.unique(numbers))
    pairs = ([(a, b) for a, b in group if levels[a] != levels[b]] for group in groups)
    return [group for group in pairs if group]


def _replicate_distances(first: Floats, second: Floats) -> Floats:
    """(replicate, ...) profiles of two cells -> distances (replicate, replicate, statistic)."""
    return profile_distance(first[:, None], second[None])


def _log_ratio(distances: FactorDistances, keep: Numbers, statistic: str | None = None) -> float:
    """Log of D_factor / D_seed over the replicates `keep`; NaN where it is not defined."""
    if keep.size < 2:
        return float("nan")
    chosen = slice(None) if statistic is None else STATISTICS.index(statistic)
    different = ~np.eye(keep.size, dtype=bool)
    between, within = (
        table[np.ix_(keep, keep)][different][:, chosen].mean() for table in (distances.between, distances.within)
    )
    # Seeds that move nothing (fixed or untrained weights) leave nothing to compare with.
    return float(np.log(between / within)) if between > 0 and within > 1e-9 else float("nan")


def _jackknife(log_statistic: Callable[[Numbers], float], n: int, confidence: float) -> Estimate:
    """Exponential of a statistic over replicates, with its delete-one jackknife interval."""
    everyone = np.arange(n)
    centre = log_statistic(everyone)
    if not np.isfinite(centre):
        return Estimate(n=n)
    left_out = np.array([log_statistic(np.delete(everyone, gone)) for gone in everyone])
    if n < 3 or not np.isfinite(left_out).all() or _identical(left_out):
        return Estimate(value=float(np.exp(centre)), n=n)
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    reach = stats.t.ppf((1 + confidence) / 2, n - 1) * error
    with np.errstate(over="ignore"):
        value, low, high = np.exp([centre, centre - reach, centre + reach]).tolist()
    return Estimate(value=value, low=low, high=high, n=n) if np.isfinite(high) else Estimate(value=value, n=n)


def _identical(values: Floats) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))
