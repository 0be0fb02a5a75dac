"""What networks chose, as profiles over relative depth, and how far apart profiles are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from study.analysis.statistics import Estimate, Floats, Numbers, cell_numbers, jackknife_ratio
from study.norms.names import NORMALIZERS

STATISTICS = ("mean", "var")
DEPTH_GRID = np.linspace(0, 1, 11)  # relative depths at which networks of different depth are compared


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
    return jackknife_ratio(lambda keep: _log_ratio(distances, keep, statistic), len(distances.between), confidence)


def effect_contrast(strong: FactorDistances, weak: FactorDistances, confidence: float) -> Estimate:
    """The ratio of two factors' effects: above 1 where the first moves the choice further than the second.

    Both need the same replicates in the same order. What varies in the interval: as in `factor_effect`.
    """
    return jackknife_ratio(
        lambda keep: _log_ratio(strong, keep) - _log_ratio(weak, keep), len(strong.between), confidence
    )


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
