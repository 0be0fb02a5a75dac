"""Means and contrasts of cells over replicates, where some cells lack some replicates.

A replicate is one draw of every seed, shared by all cells, so the replicate is the unit and cells are fixed. The
variance is cluster-robust over replicates: the deviations of all cells in a replicate are summed before they are
squared, so whatever cells of a replicate share counts as it should, and cells may differ in their spread. Where nothing
is missing, estimates and intervals are those of Student's t over the replicates' means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from study.analysis.statistics.intervals import Estimate, Floats, adjust_holm, t_quantile


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The cell that differs most from the mean of the other cells, of those that differ clearly.

    cell: its row. estimate: the cell's mean minus that of the others, at a confidence adjusted for the number of cells.
    p_value: that all cells have the same mean; the smallest p value of all cells, adjusted for their number.
    """

    cell: int
    estimate: Estimate
    p_value: float


def estimate_mean_of_cells(grid: Floats, confidence: float) -> Estimate:
    """The mean of the cells' means with its interval. grid: (cell, replicate), NaN where a number is missing.

    What varies in the interval: the replicate. See `estimate_contrast`.
    """
    return estimate_contrast(grid, np.full(len(grid), 1 / max(len(grid), 1)), confidence)


def estimate_contrast(grid: Floats, weights: Sequence[float] | Floats, confidence: float) -> Estimate:
    """The weighted sum of the cells' means with its Student t interval. grid: (cell, replicate), NaN where missing.

    The variance is the sum over replicates of S_r^2, where S_r is the sum over cells of the cell's weight times
    sqrt(n_c / (n_c - 1)) times the deviation from the cell's mean, over n_c, the cell's number of results. The degrees
    of freedom are the smaller of two numbers: the effective number of replicates minus 1, which is lower where
    replicates count unequally, and those of the cell with the fewest results, n_c - 1, because that cell may have most
    of the variance. Without missing results they are n - 1.

    What varies in the interval: the replicate. There is none where a cell has a single result, whose spread is unknown,
    and none where replicates are identical: a spread of zero (every network at 100 % accuracy, say) is no proof that
    the next seed would agree.
    Raises `ValueError` where a cell has no result.
    """
    share, used = np.asarray(weights, dtype=float), np.asarray(weights) != 0
    grid, share = np.asarray(grid, dtype=float)[used], share[used]
    present = np.isfinite(grid)
    counts = present.sum(axis=1)
    if not counts.all():
        raise ValueError(f"grid: results per cell are {counts.tolist()}: allowed are at least 1")
    if not grid.size:
        return Estimate()
    means = np.nanmean(grid, axis=1)
    value, n = float(share @ means), int(present.any(axis=0).sum())
    if counts.min() == 1:
        return Estimate(value=value, n=n)
    error, freedom = _compute_error(np.where(present, grid - means[:, None], 0.0), present, share)
    if error <= 1e-12 * max(1.0, float(np.abs(means).max())):
        return Estimate(value=value, n=n)
    reach = t_quantile(confidence, freedom) * error
    return Estimate(value=value, low=value - reach, high=value + reach, n=n, freedom=freedom)


def find_interaction(grid: Floats, confidence: float) -> Interaction | None:
    """Whether cells differ in their means, and which one most. grid: (cell, replicate), NaN where missing.

    Each cell is compared with the mean of the others, paired over replicates, so cells may differ in their spread.
    Two cells are one comparison. The cell is the one with the largest difference, of those whose intervals exclude 0;
    where none does, the one with the smallest p value. None with fewer than two cells or without intervals.
    """
    n_cells = len(grid)
    if n_cells < 2:
        return None
    n_tests = n_cells if n_cells > 2 else 1
    weights = np.eye(n_cells) - (1 - np.eye(n_cells)) / (n_cells - 1)
    adjusted = 1 - (1 - confidence) / n_tests
    contrasts = [estimate_contrast(grid, each, adjusted) for each in weights[:n_tests]]
    p_values = adjust_holm([compute_p_value(item, adjusted) for item in contrasts])
    known = {cell: p for cell, p in enumerate(p_values) if p is not None}
    if not known:
        return None
    clear = [cell for cell in known if contrasts[cell].excludes(0)]
    cell = max(clear, key=lambda number: abs(contrasts[number].value or 0.0), default=min(known, key=known.__getitem__))
    return Interaction(cell=cell, estimate=contrasts[cell], p_value=min(known.values()))


def adjust_replicates(grid: Floats) -> Floats:
    """One number per replicate: the mean over its cells, corrected for the cells that it lacks.

    The correction replaces the means of the cells that a replicate has by the mean of all cells' means. Where nothing
    is missing these are the replicates' means. Replicates without any result are left out.
    """
    with_result = grid[:, np.isfinite(grid).any(axis=0)]
    if not with_result.size:
        return np.empty(0)
    means = np.nanmean(with_result, axis=1)
    adjusted: Floats = means.mean() + np.nanmean(with_result - means[:, None], axis=0)
    return adjusted


def compute_standard_error(estimate: Estimate, confidence: float) -> float | None:
    """The standard error behind a Student t interval; None without an interval."""
    if estimate.low is None or estimate.high is None or estimate.freedom is None:
        return None
    return (estimate.high - estimate.low) / 2 / t_quantile(confidence, estimate.freedom)


def compute_p_value(estimate: Estimate, confidence: float) -> float | None:
    """Two-sided p value that the estimated number is 0. It agrees with the interval; None without one."""
    error = compute_standard_error(estimate, confidence)
    if not error or estimate.value is None or estimate.freedom is None:
        return None
    return float(2 * special.stdtr(estimate.freedom, -abs(estimate.value) / error))


def _compute_error(deviations: Floats, present: np.ndarray, share: Floats) -> tuple[float, float]:
    """Standard error and degrees of freedom of a contrast; (0, 0) where there is no spread.

    deviations: (cell, replicate), from the cells' means; 0 where a number is missing. Every cell has two results.
    """
    counts = present.sum(axis=1)
    sums = (share / np.sqrt(counts * (counts - 1))) @ deviations
    if not sums.any():
        return 0.0, 0.0
    # A cell without any spread says nothing about how much replicates vary.
    spread = (deviations != 0).any(axis=1)
    weights = (np.abs(share) / counts)[spread] @ present[spread]
    effective = 1 / float(((weights / weights.sum()) ** 2).sum())
    return float(np.sqrt((sums**2).sum())), min(effective - 1, float(counts.min() - 1))
