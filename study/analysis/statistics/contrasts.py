"""The comparisons of cells that measure a factor: contrasts between cells that differ in this factor alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import Floats, Numbers, cell_numbers


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison of cells that differ in one factor alone.

    cells: row numbers. weights: (cell, cell), such that the sum of weights times mean squared distances between cells
    (on the diagonal: within a cell) is a squared displacement.
    """

    cells: Numbers
    weights: Floats


def find_contrasts(cells: pd.DataFrame, factor: str, *, all_levels: bool = False) -> list[Contrast]:
    """The comparisons that measure a factor: one for each combination of the other factors' levels.

    cells: one row per cell, one column per factor. A factor with numeric levels is measured between its lowest and its
    highest level, whatever lies between them; one with names, by the mean over all pairs of its levels. Combinations at
    which the factor does not vary, or lacks one of the ends, are left out.
    all_levels: use the mean over all pairs for numeric levels, too.
    """
    levels = cells[factor].tolist()
    ends = None if all_levels else find_ends(levels)
    return _compare_levels(cells, factor, levels if ends is None else ends)


def find_pair_contrasts(cells: pd.DataFrame, factor: str) -> dict[tuple[str, str], list[Contrast]]:
    """The comparisons of every two levels of a factor with at least three names, as `find_contrasts`, by their names.

    Empty for other factors. Two levels that no two cells compare are left out.
    """
    levels = list({repr(level): level for level in cells[factor].tolist()}.values())
    if len(levels) < 3 or find_ends(levels):
        return {}
    found = {
        (str(pair[0]), str(pair[1])): _compare_levels(cells, factor, pair) for pair in combinations(levels, 2)
    }  # fmt: skip
    return {names: each for names, each in found.items() if each}


def find_slope_contrasts(cells: pd.DataFrame, factor: str) -> list[Contrast]:
    """The least-squares slope of the choice on log2 of a factor with positive numeric levels, as `find_contrasts`.

    All levels count, and the squared displacement is that of a doubling. Empty for other factors.
    """
    levels = cells[factor].tolist()
    if find_ends(levels) is None or min(levels) <= 0:
        return []
    found = []
    for rows in _group_cells(cells, factor):
        doublings = np.log2([float(levels[row]) for row in rows])
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


def _compare_levels(cells: pd.DataFrame, factor: str, compared: Sequence[Any]) -> list[Contrast]:
    """The mean over all pairs of these levels: one contrast for each group of cells that has several of them."""
    levels, wanted = [repr(level) for level in cells[factor].tolist()], {repr(level) for level in compared}
    found = []
    for rows in _group_cells(cells, factor):
        chosen = [row for row in rows if levels[row] in wanted]
        names = [levels[row] for row in chosen]
        if len(set(names)) > 1:
            found.append(Contrast(cells=np.array(chosen), weights=_pair_weights(names)))
    return found


def _group_cells(cells: pd.DataFrame, factor: str) -> list[list[int]]:
    """Row numbers of cells that agree in all factors but this one, and in which it has several levels."""
    levels = cells[factor].map(repr).tolist()
    numbers = cell_numbers(cells, [str(name) for name in cells if name != factor]).to_numpy()
    groups = [np.flatnonzero(numbers == number).tolist() for number in np.unique(numbers)]
    return [rows for rows in groups if len({levels[row] for row in rows}) > 1]


def _pair_weights(levels: Sequence[str]) -> Floats:
    """Weights of the mean over all pairs of cells of different levels: between the two, minus the mean within them."""
    pairs = np.not_equal.outer(levels, levels).astype(float)
    return np.asarray((pairs - np.diag(pairs.sum(axis=0))) / pairs.sum())
