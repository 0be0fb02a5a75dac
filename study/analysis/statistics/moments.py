"""Mean squared distances between cells, and the moments that displacements are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from study.analysis.statistics.contrasts import Contrast
from study.analysis.statistics.intervals import Floats

NOTHING = 1e-12  # a squared distance up to this is 0: replicates do not differ


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The means that a displacement is computed from: with all replicates first, then without each of them in turn.

    squared: squared displacements (1 + replicate, axis). seeds: squared distances between replicates of a cell, of the
    same shape. parts: the numbers (replicate, replicate, axis) whose mean over pairs of different replicates is the
    squared displacement of all replicates. noise: the variance of one replicate's contrast, as a multiple of `seeds`,
    if seeds are independent.
    replicates: their numbers, in this order; empty where these are not known.
    fewest: the number of networks in the cell that has the fewest; None where every replicate is in every cell.
    n_contrasts, n_planned: the number of contrasts with results, and of planned ones.
    """

    squared: Floats
    seeds: Floats
    parts: Floats
    noise: float = 1.0
    replicates: Sequence[int] = ()
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
        squared=squared, seeds=seeds, noise=noise, replicates=replicates, fewest=distances.count_fewest(whole),
        n_contrasts=len(whole), n_planned=len(contrasts),
        parts=np.mean(parts, axis=0) if parts else np.full((len(replicates), *squared[1:].shape), np.nan),
    )  # fmt: skip


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


def pair_replicates(distances: CellDistances, contrasts: Sequence[Contrast], used: Sequence[int]) -> Floats | None:
    """The numbers (replicate, replicate) whose mean is the squared displacement of a factor; None without a contrast.

    used: the numbers of the replicates.
    """
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
