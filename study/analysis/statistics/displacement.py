"""How far a factor moves what networks choose: displacements, free of the noise of seeds, with jackknife intervals.

The displacement of two cells is the distance of their centres, in the space in which distances are Euclidean. There,
sets of networks that differ much in their spread alone have different centres, too. Its square is estimated without
bias from squared distances between networks of different replicates: their mean between the cells, minus that within
them. Networks of one replicate share seeds, and lie closer together or further apart than others, so pairs of equal
replicates are not used. Squares are averaged over all pairs of cells that differ in the factor alone; the root of the
mean, with the sign of the mean, is the displacement. So it is about 0 where a factor changes nothing, and as often
below as above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from study.analysis.statistics.intervals import (
    Estimate,
    Floats,
    Numbers,
    cell_numbers,
    find_bounds,
    is_identical,
    jackknife_interval,
    t_quantile,
)

NOTHING = 1e-12  # a squared distance up to this is 0: replicates do not differ


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison of cells that differ in one factor alone.

    cells: row numbers. weights: (cell, cell), such that the sum of weights times mean squared distances between cells
    (on the diagonal: within a cell) is a squared displacement.
    """

    cells: Numbers
    weights: Floats


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The means that a displacement is computed from: with all replicates first, then without each of them in turn.

    squared: squared displacements (1 + replicate, axis). seeds: squared distances between replicates of a cell, of the
    same shape. parts: the numbers (replicate, replicate, axis) whose mean over pairs of different replicates is the
    squared displacement of all replicates. noise: the variance of one replicate's contrast, as a multiple of `seeds`,
    if seeds are independent.
    fewest: the number of networks in the cell that has the fewest; None where every replicate is in every cell.
    n_contrasts, n_planned: the number of contrasts with results, and of planned ones.
    """

    squared: Floats
    seeds: Floats
    parts: Floats
    noise: float = 1.0
    fewest: int | None = None
    n_contrasts: int = 1
    n_planned: int = 1

    @property
    def n(self) -> int:
        """Number of replicates."""
        return len(self.squared) - 1

    @property
    def freedom(self) -> int:
        """Degrees of freedom: those of the cell with the fewest networks, because it may have most of the variance."""
        return (self.n if self.fewest is None else min(self.n, self.fewest)) - 1

    @property
    def is_complete(self) -> bool:
        return self.n_contrasts == self.n_planned

    @property
    def seeds_change_nothing(self) -> bool:
        """Whether replicates of a cell do not differ at all, as with weights that have become one-hot."""
        return self.n > 1 and bool((self.seeds[0] <= NOTHING).all())

    def select_axis(self, axis: int) -> Moments:
        """The moments of one axis."""
        return replace(
            self, squared=self.squared[:, [axis]], seeds=self.seeds[:, [axis]], parts=self.parts[..., [axis]]
        )


# ------------------------------------------------------------------------------------------------ which cells


def find_contrasts(cells: pd.DataFrame, factor: str, *, all_levels: bool = False) -> list[Contrast]:
    """The comparisons that measure a factor: one for each combination of the other factors' levels.

    cells: one row per cell, one column per factor. A factor with numeric levels is measured between its lowest and its
    highest level, whatever lies between them; one with names, by the mean over all pairs of its levels. Combinations at
    which the factor does not vary, or lacks one of the ends, are left out.
    all_levels: use the mean over all pairs for numeric levels, too.
    """
    ends = None if all_levels else find_ends(cells[factor].tolist())
    found = []
    for rows in _group_cells(cells, factor):
        levels = [cells[factor].iloc[row] for row in rows]
        chosen = [number for number, level in enumerate(levels) if ends is None or level in ends]
        names = [repr(levels[number]) for number in chosen]
        if len(set(names)) > 1:
            numbers = np.array([rows[number] for number in chosen])
            found.append(Contrast(cells=numbers, weights=_pair_weights(names)))
    return found


def find_slope_contrasts(cells: pd.DataFrame, factor: str) -> list[Contrast]:
    """The least-squares slope of the choice on log2 of a factor with positive numeric levels, as `find_contrasts`.

    All levels count, and the squared displacement is that of a doubling. Empty for other factors.
    """
    levels = cells[factor].tolist()
    if find_ends(levels) is None or min(levels) <= 0:
        return []
    found = []
    for rows in _group_cells(cells, factor):
        doublings = np.log2([float(cells[factor].iloc[row]) for row in rows])
        doublings = doublings - doublings.mean()
        if np.abs(doublings).max(initial=0) > 0:
            slope = doublings / np.sum(doublings**2)
            found.append(Contrast(cells=np.array(rows), weights=-np.outer(slope, slope) / 2))
    return found


def find_ends(levels: Sequence[Any]) -> tuple[Any, Any] | None:
    """The lowest and the highest level of a factor whose levels are numbers; None for other factors, or one level."""
    if any(type(level) not in (int, float) or not np.isfinite(level) for level in levels) or len(set(levels)) < 2:
        return None
    return min(levels), max(levels)


def _group_cells(cells: pd.DataFrame, factor: str) -> list[list[int]]:
    """Row numbers of cells that agree in all factors but this one, and in which it has several levels."""
    numbers = cell_numbers(cells, [str(name) for name in cells if name != factor]).to_numpy()
    groups = [np.flatnonzero(numbers == number).tolist() for number in np.unique(numbers)]
    return [rows for rows in groups if len({repr(cells[factor].iloc[row]) for row in rows}) > 1]


def _pair_weights(levels: Sequence[str]) -> Floats:
    """Weights of the mean over all pairs of cells of different levels: between the two, minus the mean within them."""
    pairs = np.not_equal.outer(levels, levels).astype(float)
    return np.asarray((pairs - np.diag(pairs.sum(axis=0))) / pairs.sum())


# -------------------------------------------------------------------------------------------------- estimates


class CellDistances:
    """Mean squared distances between cells over pairs of different replicates, with any networks missing.

    squared: (cell, replicate, cell, replicate, axis), NaN where one of the two networks is missing.
    """

    def __init__(self, squared: Floats) -> None:
        n = squared.shape[1]
        known = np.isfinite(squared) & ~np.eye(n, dtype=bool)[None, :, None, :, None]
        values = np.where(known, squared, 0.0)
        self.squared = squared
        # By cell, cell and axis; and the part of each replicate, as the first or the second of a pair.
        self._sums, self._counts = values.sum(axis=(1, 3)), known.sum(axis=(1, 3))
        self._own_sums = values.sum(axis=3).swapaxes(0, 1) + np.moveaxis(values.sum(axis=1), 2, 0)
        self._own_counts = known.sum(axis=3).swapaxes(0, 1) + np.moveaxis(known.sum(axis=1), 2, 0)

    def count_fewest(self, contrasts: Sequence[Contrast]) -> int | None:
        """The number of networks in the cell of the contrasts that has the fewest; None without a contrast."""
        counts = np.isfinite(self.squared).any(axis=(2, 3, 4)).sum(axis=1)
        return min((int(counts[each.cells].min()) for each in contrasts), default=None)

    def replicates(self, contrasts: Sequence[Contrast]) -> list[int]:
        """The numbers of the replicates that have a part in any of the contrasts."""
        used = [(self._own_counts[:, each.cells][:, :, each.cells] > 0).any(axis=(1, 2, 3)) for each in contrasts]
        return [int(number) for number in np.flatnonzero(np.any(used, axis=0))] if used else []

    def means(self, without: int | None = None) -> Floats:
        """Mean squared distances (cell, cell, axis), without one of the replicates; NaN where there is no pair.

        A cell with a single network gets the mean distance of the others within cells.
        """
        sums, counts = self._sums, self._counts
        if without is not None:
            sums, counts = sums - self._own_sums[without], counts - self._own_counts[without]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(counts > 0, np.maximum(sums, 0.0) / counts, np.nan)  # a difference of sums has rounding
        diagonal = np.arange(len(means))
        within = means[diagonal, diagonal]
        known = np.isfinite(within)
        if known.any(axis=0).all():
            average = np.nanmean(within, axis=0)
            means[diagonal, diagonal] = np.where(known, within, average)
        return np.asarray(means)


def measure_contrasts(distances: CellDistances, contrasts: Sequence[Contrast]) -> Moments:
    """The moments of a factor, means over its contrasts. A contrast with a cell that has no network is left out.

    Replicates are those that have a network in one of the contrasts.
    """
    everyone = distances.means()
    whole = [each for each in contrasts if np.isfinite(_select(everyone, each)).all()]
    replicates = distances.replicates(whole)
    tables = [everyone, *(distances.means(without) for without in replicates)]
    shape = (len(tables), everyone.shape[-1])
    squared, seeds = np.full(shape, np.nan), np.full(shape, np.nan)
    own = np.ix_(replicates, replicates)
    parts = [_compute_parts(distances.squared, everyone, each)[own] for each in whole]
    for row, table in enumerate(tables if whole else []):
        squared[row] = np.mean([np.einsum("ij,ija->a", each.weights, _select(table, each)) for each in whole], axis=0)
        seeds[row] = np.mean([np.einsum("iia->ia", _select(table, each)).mean(axis=0) for each in whole], axis=0)
    noise = float(np.mean([-np.trace(each.weights) for each in whole])) if whole else 1.0
    return Moments(
        squared=squared, seeds=seeds, noise=noise, fewest=distances.count_fewest(whole),
        n_contrasts=len(whole), n_planned=len(contrasts),
        parts=np.mean(parts, axis=0) if parts else np.full((len(replicates), *squared[1:].shape), np.nan),
    )  # fmt: skip


def displacement(moments: Moments, confidence: float, axis: int | None = None) -> Estimate:
    """The displacement in the distance's own unit; `axis`: the number of the one axis to measure, else their mean.

    What varies in the interval: the replicate; see `_estimate_root`. Where replicates do not differ at all, the
    interval is the value itself.
    """
    squares, seeds = _average(moments.squared, axis), _average(moments.seeds, axis)
    return _estimate_root(
        squares, _average(moments.parts, axis), float(seeds[0]) * moments.noise, confidence,
        freedom=moments.freedom, certain=moments.seeds_change_nothing,
    )  # fmt: skip


def displacement_p_values(moments: Moments) -> Floats:
    """One-sided p values, axis by axis, that the displacement is not above 0: those of `displacement`'s intervals.

    NaN where there is no interval; 0 or 1 where the interval is a single point.
    """
    n, squares, seeds = moments.n, moments.squared, moments.seeds
    if n < 3 or moments.freedom < 1:
        return np.full(squares.shape[1], np.nan)
    scale = _compute_scale(seeds[0] * moments.noise, n)
    stable = _stabilize(squares, scale)
    value, left_out = stable[0], stable[1:]
    error = _compute_error(squares, stable, moments.parts, scale)
    with np.errstate(invalid="ignore", divide="ignore"):
        p_values = special.stdtr(moments.freedom, -value / error)
    constant = np.array([is_identical(each) for each in left_out.T], dtype=bool)
    certain = constant & (seeds[0] <= NOTHING)
    p_values = np.where(certain, np.where(value > 0, 0.0, 1.0), np.where(constant, np.nan, p_values))
    return np.where(np.isfinite(stable).all(axis=0), p_values, np.nan)


def relative_displacement(moments: Moments, confidence: float, axis: int | None = None) -> Estimate:
    """The displacement in units of the distance between replicates of a cell: at 1, as far as another seed.

    Not defined where replicates do not differ.
    """
    squares, seeds = _average(moments.squared, axis), _average(moments.seeds, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(seeds > NOTHING, squares / seeds, np.nan)
        parts = _average(moments.parts, axis) / seeds[0]
    return _estimate_root(ratios, parts, moments.noise, confidence, freedom=moments.freedom)


def displacement_difference(first: Estimate, second: Estimate, confidence: float) -> Estimate:
    """How much further one factor moves the choice than another, from their displacements at this confidence.

    The interval combines those of the two (Zou and Donner, 2008), so it need not be symmetric.
    """
    n = min(first.n, second.n)
    if first.value is None or second.value is None:
        return Estimate(n=n)
    value, parts = first.value - second.value, (first, second)
    if any(each.freedom is None for each in parts):
        return Estimate(value=value, n=n)

    def bounds(at: float) -> tuple[float, float]:
        (low, high), (other_low, other_high) = (find_bounds(each, confidence, at) for each in parts)
        below = np.hypot((first.value or 0.0) - low, other_high - (second.value or 0.0))
        above = np.hypot(high - (first.value or 0.0), (second.value or 0.0) - other_low)
        return value - float(below), value + float(above)

    low, high = bounds(confidence)
    freedom = min(each.freedom or 0.0 for each in parts)
    return Estimate(value=value, low=low, high=high, n=n, freedom=freedom, bounds=bounds)


def seed_distance(moments: Moments, confidence: float) -> Estimate:
    """The root mean squared distance between replicates of a cell."""
    return jackknife_interval(np.sqrt(_average(moments.seeds)), confidence, certain=moments.seeds_change_nothing)


def build_moments(between: Floats, within: Floats) -> Moments:
    """The moments of a comparison whose distances are given by replicate.

    between, within: mean squared distances of two different replicates (replicate, replicate, axis), NaN where there
    are none; the diagonal is not used. Replicates without any pair are left out.
    """
    n = len(between)
    tables = np.where(~np.eye(n, dtype=bool)[:, :, None], np.stack([between, within]), np.nan)
    used = np.flatnonzero(np.isfinite(tables).any(axis=(0, 2, 3)))
    kept = [used, *(used[used != gone] for gone in used)]
    means = np.stack([_nan_mean(tables[:, keep][:, :, keep]) for keep in kept], axis=1)
    parts = tables[0] - tables[1]
    parts = np.where(np.isfinite(parts), parts, means[0, 0] - means[1, 0])[np.ix_(used, used)]
    return Moments(squared=means[0] - means[1], seeds=means[1], parts=(parts + parts.swapaxes(0, 1)) / 2)


def probability_strongest(
    distances: CellDistances, contrasts: Mapping[str, Sequence[Contrast]], draws: int = 2000
) -> dict[str, float]:
    """The share of resampled studies in which each factor has the largest displacement.

    Replicates are resampled jointly for all factors, by random weights (the Bayesian bootstrap: Rubin, 1981): with few
    replicates, drawing with replacement would often leave one replicate alone. Ties count in equal parts. A missing
    network is replaced by the mean of its cell's distances. Empty with fewer than three replicates: of two there is one
    pair, whatever its weight.
    """
    used = distances.replicates([each for of_factor in contrasts.values() for each in of_factor])
    tables = {name: _replicate_table(distances, each, used) for name, each in contrasts.items()}
    known = {name: table for name, table in tables.items() if table is not None}
    if not known or len(used) < 3:
        return {}
    weights = np.random.default_rng([7, len(used)]).dirichlet(np.ones(len(used)), draws)
    products = weights[:, :, None] * weights[:, None, :] * (1 - np.eye(len(used)))
    products /= products.sum(axis=(1, 2), keepdims=True)
    values = np.stack([np.einsum("drs,rs->d", products, table) for table in known.values()])
    largest = values >= values.max(axis=0) - NOTHING
    return dict(zip(known, (largest / largest.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def _replicate_table(distances: CellDistances, contrasts: Sequence[Contrast], used: Sequence[int]) -> Floats | None:
    """The parts (replicate, replicate) whose mean is the squared displacement of a factor; None without a contrast."""
    means, own = distances.means(), np.ix_(used, used)
    parts = [
        _compute_parts(distances.squared, means, each)[own].mean(axis=-1)
        for each in contrasts if np.isfinite(_select(means, each)).all()
    ]  # fmt: skip
    return np.mean(parts, axis=0) if parts else None


def _compute_parts(squared: Floats, means: Floats, contrast: Contrast) -> Floats:
    """The contrast of the distances of two replicates (replicate, replicate, axis).

    squared: as in `CellDistances`. means: mean squared distances (cell, cell, axis), which replace missing ones.
    """
    own = squared[contrast.cells][:, :, contrast.cells]
    filled = np.where(np.isfinite(own), own, _select(means, contrast)[:, None, :, None])
    return np.asarray(np.einsum("ij,irjsa->rsa", contrast.weights, filled))


def _nan_mean(tables: Floats) -> Floats:
    """Means over pairs of replicates: (table, axis)."""
    known = np.isfinite(tables)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, tables, 0.0).sum(axis=(1, 2)) / known.sum(axis=(1, 2)))


def _select(table: Floats, contrast: Contrast) -> Floats:
    return table[np.ix_(contrast.cells, contrast.cells)]


def _average(values: Floats, axis: int | None = None) -> Floats:
    return np.asarray(values.mean(axis=-1) if axis is None else values[..., axis])


def _estimate_root(
    squares: Floats, parts: Floats, noise: float, confidence: float, *, freedom: int, certain: bool = False
) -> Estimate:  # fmt: skip
    """The signed root of a squared displacement, with its interval.

    squares: of all replicates, followed by those without each replicate. parts: as in `Moments`. noise: the variance of
    one replicate's contrast. freedom: degrees of freedom; below 1 there is no interval. The variance of an estimated
    square s is about proportional to s + c with c = noise / (2 (n - 1)), so Student's t interval is computed for
    sign(s) (sqrt(|s| + c) - sqrt(c)), whose variance is about constant, and its ends are transformed back. Its error is
    that of `_compute_error`. Measured on Gaussian replicates of 1 to 8 directions, 3 to 16 of them, 95 % intervals
    cover 93 to 99 %.
    """
    n = len(squares) - 1
    scale = float(_compute_scale(np.array(noise), n))
    transformed = _stabilize(squares, np.array(scale))
    stable = jackknife_interval(transformed, confidence, certain=certain)
    if stable.low is not None and stable.high is not None and stable.value is not None and stable.low < stable.high:
        error = float(_compute_error(squares[:, None], transformed[:, None], parts[..., None], np.array([scale]))[0])
        reach = t_quantile(confidence, freedom) * error if freedom >= 1 else None
        stable = replace(
            stable, low=None if reach is None else stable.value - reach,
            high=None if reach is None else stable.value + reach, freedom=None if reach is None else freedom,
        )  # fmt: skip

    def restore(number: float) -> float:
        return float(np.sign(number) * np.sqrt((abs(number) + scale) ** 2 - scale**2))

    def bounds(at: float) -> tuple[float, float]:
        low, high = find_bounds(stable, confidence, at)
        return restore(low), restore(high)

    if stable.value is None:
        return stable
    if stable.low is None:
        return replace(stable, value=restore(stable.value))
    low, high = bounds(confidence)
    return replace(stable, value=restore(stable.value), low=low, high=high, bounds=bounds)


def _compute_scale(noise: Floats, n: int) -> Floats:
    """The root of c in `_estimate_root`; 0 where the noise is not known."""
    return np.asarray(np.sqrt(np.where(np.isfinite(noise), np.maximum(noise, 0.0), 0.0) / (2 * max(n - 1, 1))))


def _stabilize(squares: Floats, scale: Floats) -> Floats:
    return np.asarray(np.sign(squares) * (np.sqrt(np.abs(squares) + scale**2) - scale))


def _compute_error(squares: Floats, stable: Floats, parts: Floats, scale: Floats) -> Floats:
    """The standard error (axis) of stabilized squares: the jackknife's, with what it lacks where there is no effect.

    A squared displacement is a U statistic (Hoeffding, 1948): the mean over pairs of replicates of `parts`. Its
    variance comes from the replicates, which is what a jackknife measures, and from pairs. Without an effect, all of it
    comes from pairs, and where seeds move networks along few directions the jackknife is near 0 whenever the square is.
    So the variance of pairs is a lower bound where the square is small, up to a few times c. It is that of the
    residuals of `parts` after its mean and the effects of both replicates, which takes four replicates.
    """
    n = len(squares) - 1
    left_out = stable[1:]
    jackknife = (n - 1) / n * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0)
    if n < 4:
        return np.asarray(np.sqrt(jackknife))
    apart = ~np.eye(n, dtype=bool)[:, :, None]
    mean = np.where(apart, parts, 0.0).sum(axis=(0, 1)) / (n * (n - 1))
    own = np.where(apart, parts - mean, 0.0).sum(axis=1) / (n - 2)
    residuals = np.where(apart, parts - mean - own[:, None] - own[None, :], 0.0)
    of_pairs = 2 * np.sum(residuals**2, axis=(0, 1)) / (n * (n - 3)) / (n * (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        lower = np.where(scale > 0, of_pairs / (4 * scale**2), 0.0)
        weight = np.where(scale > 0, 1 / (1 + np.maximum(squares[0], 0.0) / (4 * scale**2)), 0.0)
    return np.asarray(np.sqrt(jackknife + weight * np.maximum(lower - jackknife, 0.0)))
