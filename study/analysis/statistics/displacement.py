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
from dataclasses import replace

import numpy as np
from scipy import special

from study.analysis.statistics.contrasts import Contrast
from study.analysis.statistics.intervals import (
    Estimate,
    Floats,
    find_bounds,
    is_identical,
    jackknife_interval,
    t_quantile,
)
from study.analysis.statistics.moments import NOTHING, CellDistances, Moments, pair_replicates

RESAMPLES = 2000  # studies drawn for the probability of being the strongest


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


def displacement_difference(
    first: Estimate, second: Estimate, confidence: float, correlation: float = 0.0
) -> Estimate:  # fmt: skip
    """How much further one factor moves the choice than another, from their displacements at this confidence.

    The interval combines those of the two (Zou and Donner, 2008; with their correlation: Zou, 2007), so it need not be
    symmetric. correlation: of the two estimates; a positive one is taken as 0, which makes the interval too wide.
    """
    n = min(first.n, second.n)
    if first.value is None or second.value is None:
        return Estimate(n=n)
    value, parts = first.value - second.value, (first, second)
    if any(each.freedom is None for each in parts):
        return Estimate(value=value, n=n)

    def bounds(at: float) -> tuple[float, float]:
        (low, high), (other_low, other_high) = (find_bounds(each, confidence, at) for each in parts)
        below = _join_errors((first.value or 0.0) - low, other_high - (second.value or 0.0), correlation)
        above = _join_errors(high - (first.value or 0.0), (second.value or 0.0) - other_low, correlation)
        return value - below, value + above

    low, high = bounds(confidence)
    freedom = min(each.freedom or 0.0 for each in parts)
    return Estimate(value=value, low=low, high=high, n=n, freedom=freedom, bounds=bounds)


def correlate_displacements(first: Moments, second: Moments) -> float:
    """The correlation of two displacements over replicates, from their values without each replicate.

    0 with fewer than four replicates, whose correlation would be noise.

    Two factors share cells. Where a cell in which one is at its upper level and the other at its lower one is noisier
    than others, the same noise makes one displacement larger and the other smaller.
    """
    places = {number: row for row, number in enumerate(second.replicates, start=1)}
    rows = [(row, places[number]) for row, number in enumerate(first.replicates, start=1) if number in places]
    if len(rows) < 4:
        return 0.0
    pairs = np.array([
        _stabilize(_average(each.squared)[list(numbers)], _compute_scale(_average(each.seeds)[0] * each.noise, each.n))
        for each, numbers in zip((first, second), zip(*rows, strict=True), strict=True)
    ])  # fmt: skip
    if any(is_identical(each) for each in pairs) or not np.isfinite(pairs).all():
        return 0.0
    return float(np.corrcoef(pairs)[0, 1])


def seed_distance(moments: Moments, confidence: float) -> Estimate:
    """The root mean squared distance between replicates of a cell."""
    return jackknife_interval(np.sqrt(_average(moments.seeds)), confidence, certain=moments.seeds_change_nothing)


def probability_strongest(
    distances: CellDistances, *numbers: Mapping[str, Sequence[Contrast]]
) -> dict[str, float]:  # fmt: skip
    """The share of resampled studies in which each factor has the largest displacement.

    numbers: contrasts by factor. Of a factor with several numbers, the largest counts, in each resampled study.
    Replicates are resampled jointly for all factors, by random weights (the Bayesian bootstrap: Rubin, 1981): with few
    replicates, drawing with replacement would often leave one replicate alone. Ties count in equal parts. A missing
    network is replaced by the mean of its cell's distances. Empty with fewer than three replicates: of two there is one
    pair, whatever its weight.
    """
    named = [pair for contrasts in numbers for pair in contrasts.items()]
    used = distances.replicates([each for _, of_factor in named for each in of_factor])
    tables = [(name, pair_replicates(distances, of_factor, used)) for name, of_factor in named]
    known = [(name, table) for name, table in tables if table is not None]
    if not known or len(used) < 3:
        return {}
    weights = np.random.default_rng([7, len(used)]).dirichlet(np.ones(len(used)), RESAMPLES)
    products = weights[:, :, None] * weights[:, None, :] * (1 - np.eye(len(used)))
    products /= products.sum(axis=(1, 2), keepdims=True)
    squares: dict[str, Floats] = {}
    for name, table in known:
        squared = np.einsum("drs,rs->d", products, table)
        squares[name] = np.maximum(squares.get(name, squared), squared)
    values = np.stack(list(squares.values()))
    largest = values >= values.max(axis=0) - NOTHING
    return dict(zip(squares, (largest / largest.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def _join_errors(first: float, second: float, correlation: float) -> float:
    """The error of a difference, from those of its parts."""
    return float(np.sqrt(first**2 + second**2 - 2 * min(correlation, 0.0) * first * second))


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
