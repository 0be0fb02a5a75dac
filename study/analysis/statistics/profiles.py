"""Profiles of switch weights over relative depth, the distances between them, and the effects of factors.

Profiles are arrays (..., axis, depth, member): the axes and members of the choice space, at the depths of `DEPTH_GRID`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from study.analysis.statistics.intervals import Estimate, Floats, Numbers, cell_numbers, jackknife_ratio
from study.config.choice_space import ChoiceSpace

DEPTH_GRID = np.linspace(0, 1, 11)  # relative depths at which networks of different depth are compared
FLOOR = 0.01  # smaller weights, including the zeros of sparse norms, are raised to this before a logarithm is taken
# A squared distance up to this counts as 0. If replicates do not differ (fixed or untrained weights), no ratio is
# defined.
NOTHING = 1e-18

ByDepth = Callable[[Floats, Floats], Floats]
CellPairs = list[list[tuple[int, int]]]


def depth_profiles(switch: pd.DataFrame, space: ChoiceSpace) -> dict[str, Floats]:
    """The profile of every network by its key: arrays (axis, depth, member).

    switch: rows of one epoch and one role of each trial: key, depth_fraction (within the role), statistic, normalizer,
    weight. Layers at equal depth are averaged; a member outside of the pool has weight 0; weights of members sum to 1.
    """
    if switch.empty:
        return {}
    # One table for all networks: building a table for each would take longer than filling it.
    by = ["key", "depth_fraction", "statistic", "normalizer"]
    wanted = pd.MultiIndex.from_product([space.axis_names, space.member_names])
    table = switch.groupby(by, observed=True)["weight"].mean().unstack(["statistic", "normalizer"])
    table = table.reindex(columns=wanted).fillna(0.0).sort_index()
    keys, depths = (table.index.get_level_values(level) for level in ("key", "depth_fraction"))
    networks, starts = np.unique(keys.to_numpy(dtype=str), return_index=True)
    places = np.split(depths.to_numpy(dtype=float), starts[1:])
    weights = np.split(table.to_numpy(dtype=float), starts[1:])
    return {
        str(key): _profile(place, weight, space) for key, place, weight in zip(networks, places, weights, strict=True)
    }


def _profile(depths: Floats, weights: Floats, space: ChoiceSpace) -> Floats:
    """The profile of one network, interpolated from weights (layer, axis and member) at `depths`."""
    columns = [np.interp(DEPTH_GRID, depths, column) for column in weights.T]
    profile = np.stack(columns).reshape(len(space.axes), len(space.members), DEPTH_GRID.size).swapaxes(1, 2)
    return np.asarray(profile / profile.sum(axis=-1, keepdims=True), dtype=float)


# ------------------------------------------------------------------------------------------------- distances


def profile_divergence(first: Floats, second: Floats) -> Floats:
    """Jensen-Shannon divergence (base 2, from 0 to 1) of profiles, averaged over depth: (..., axis).

    Leading dimensions are broadcast. It is a squared distance in a Hilbert space (Fuglede and Topsoe, 2004): its mean
    between two sets of networks is the mean within the sets plus the squared distance of their centres. So two
    sets with the same centre are not counted as distant only because their spreads differ; with unsquared distances
    they could be.
    """
    return np.asarray((jensen_shannon(first, second) ** 2).mean(axis=-1), dtype=float)


def jensen_shannon(first: Floats, second: Floats) -> Floats:
    """The Jensen-Shannon distance of weights (..., member), at each depth of each axis."""
    first, second = np.broadcast_arrays(first, second)
    with np.errstate(invalid="ignore"):  # equal profiles may round to the root of a tiny negative number
        distance = np.asarray(jensenshannon(first, second, base=2, axis=-1), dtype=float)
    return np.asarray(np.nan_to_num(distance), dtype=float)


def euclidean(first: Floats, second: Floats) -> Floats:
    """The Euclidean distance of coordinates (..., member); of `log_ratios` it is the Aitchison distance."""
    return np.asarray(np.linalg.norm(first - second, axis=-1), dtype=float)


def log_ratios(profiles: Floats) -> Floats:
    """Centred log-ratios (..., member) of weights, over the members that any of these networks has.

    Their Euclidean distance is the Aitchison distance (1986), as is that of ilr coordinates. A weight below `FLOOR` is
    replaced by it, and the others shrink in proportion (multiplicative replacement: Martin-Fernandez et al., 2003).
    """
    if not profiles.size:
        return profiles
    members = (profiles > 0).any(axis=tuple(range(profiles.ndim - 1)))
    weights = profiles[..., members]
    low = weights < FLOOR
    high = np.where(low, 0.0, weights)
    shrunk = high * (1 - FLOOR * low.sum(axis=-1, keepdims=True)) / high.sum(axis=-1, keepdims=True)
    logs = np.log(np.where(low, FLOOR, shrunk))
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True), dtype=float)


def squared_distances(profiles: Floats, by_depth: ByDepth = jensen_shannon) -> Floats:
    """The squared distance of every two networks, averaged over depth: (cell, replicate, cell, replicate, axis).

    profiles: (cell, replicate, axis, depth, member).
    """
    networks = profiles.reshape(profiles.shape[0] * profiles.shape[1], *profiles.shape[2:])
    table = np.zeros((len(networks), len(networks), profiles.shape[2]))
    for row, network in enumerate(networks):
        table[row, row:] = table[row:, row] = (by_depth(network, networks[row:]) ** 2).mean(axis=-1)
    return table.reshape(*profiles.shape[:2], *profiles.shape[:2], profiles.shape[2])


# ---------------------------------------------------------------------------------------------- factors


@dataclass(frozen=True, kw_only=True)
class FactorDistances:
    """Squared distances between replicates, averaged over cells: arrays (replicate, replicate, axis).

    between: of two cells that differ in the factor alone. within: of a cell and itself, over the same cells.
    """

    between: Floats
    within: Floats


def comparable_pairs(cells: pd.DataFrame, factor: str) -> CellPairs:
    """Pairs of row numbers of cells that differ in the factor alone, grouped by the levels of all other factors.

    cells: one row per cell, one column per factor.
    """
    numbers = cell_numbers(cells, [str(name) for name in cells if name != factor]).to_numpy()
    levels = cells[factor].tolist()
    groups = (combinations(np.flatnonzero(numbers == number).tolist(), 2) for number in np.unique(numbers))
    pairs = ([(a, b) for a, b in group if levels[a] != levels[b]] for group in groups)
    return [group for group in pairs if group]


def count_cell_pairs(cells: pd.DataFrame, factor: str) -> int:
    """Number of pairs of cells that differ in the factor alone."""
    return sum(map(len, comparable_pairs(cells, factor)))


def factor_distances(squared: Floats, pairs: CellPairs) -> FactorDistances:
    """Squared distances between levels of a factor, and those between seeds over the same cells.

    squared: from `squared_distances`. pairs: from `comparable_pairs`; each group counts equally.
    Raises `ValueError` without any pair.
    """
    if not pairs:
        raise ValueError("pairs: no two cells differ in the factor alone")
    between, within = [], []
    for group in pairs:
        first, second = np.array(group).T
        members = np.unique([first, second])
        between.append(squared[first, :, second].mean(axis=0))
        within.append(squared[members, :, members].mean(axis=0))
    return FactorDistances(between=np.mean(between, axis=0), within=np.mean(within, axis=0))


def factor_effect(distances: FactorDistances, confidence: float, axis: int | None = None) -> Estimate:
    """Distance between levels divided by distance between replicates: D_factor / D_seed, 1 without an effect.

    Both are root mean squares of distances between different replicates: at equal replicate cells share their seeds
    and lie closer together. axis: the number of the one axis to measure; by default the mean over all.
    What varies in the interval: the replicate (jackknife of the log ratio, Student t; at least 3 replicates).
    The interval is conservative: without an effect, fewer than 5 % of 95 % intervals miss 1.
    """
    return jackknife_ratio(lambda keep: _log_ratio(distances, keep, axis), len(distances.between), confidence)


def effect_contrast(strong: FactorDistances, weak: FactorDistances, confidence: float) -> Estimate:
    """The ratio of two factors' effects: above 1 where the first moves the choice further than the second.

    Both must hold the same replicates in the same order. What varies in the interval: as in `factor_effect`.
    """
    return jackknife_ratio(
        lambda keep: _log_ratio(strong, keep) - _log_ratio(weak, keep), len(strong.between), confidence
    )


def transfer_distance(before: Floats, after: Floats, confidence: float) -> Estimate:
    """How far profiles move from before to after, relative to the distance of replicates before (root mean squares).

    Both arrays are (cell, replicate, axis, depth, member). At 0 networks keep their choice; at 1 they are as far from
    their own earlier profile as replicates are from each other. What varies in the interval: the replicate (jackknife
    of the log ratio, Student t).
    """
    moved = profile_divergence(before, after).mean(axis=(0, 2))
    seeds = profile_divergence(before[:, :, None], before[:, None]).mean(axis=(0, 3))

    def log_ratio(keep: Numbers) -> float:
        apart = seeds[np.ix_(keep, keep)][~np.eye(keep.size, dtype=bool)]
        defined = keep.size > 1 and apart.mean() > NOTHING and moved[keep].mean() > 0
        return float(np.log(moved[keep].mean() / apart.mean()) / 2) if defined else float("nan")

    return jackknife_ratio(log_ratio, moved.size, confidence)


def _log_ratio(distances: FactorDistances, keep: Numbers, axis: int | None = None) -> float:
    """Log of D_factor / D_seed over the replicates `keep`; NaN where it is not defined."""
    if keep.size < 2:
        return float("nan")
    chosen = slice(None) if axis is None else axis
    different = ~np.eye(keep.size, dtype=bool)
    between, within = (
        table[np.ix_(keep, keep)][different][:, chosen].mean() for table in (distances.between, distances.within)
    )
    return float(np.log(between / within) / 2) if between > 0 and within > NOTHING else float("nan")
