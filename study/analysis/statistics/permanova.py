"""The share of the variance between networks that each factor explains: PERMANOVA in a complete block.

Anderson (2001) and McArdle & Anderson (2001): sums of squares are computed from squared distances between networks,
without coordinates. They are marginal (type II): what a factor adds to all others and the replicate. So they are
defined in a study of blocks, too, where factors are not crossed with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import Estimate, Floats, Numbers, cell_numbers, jackknife

PERMUTATIONS = 999
REPLICATE, RESIDUAL = "replicate", "residual"


def variance_shares(products: Floats, cells: pd.DataFrame, confidence: float) -> dict[str, Estimate]:
    """The share of the variance between networks that each factor, the replicate and the residual explain.

    products: inner products of networks, (cell, replicate, cell, replicate), from any origin: of coordinates, or
    squared distances times -1/2. cells: one row per cell, one column per factor. At least two replicates are needed.
    The share is omega squared: what a factor explains beyond chance, from 0 to 1. The residual holds interactions of
    factors and the effect of seeds beyond what cells of one replicate share. In a study of blocks shares need not sum
    to 1. What varies in the interval: the replicate (jackknife, Student t). The shares of the replicate and of the
    residual have no interval: it would need more replicates than a study has.
    """
    n, model = products.shape[1], _Model.build(cells)

    @cache
    def shares(keep: tuple[int, ...]) -> dict[str, float]:
        return _omega_squared(products[:, list(keep)][:, :, :, list(keep)], model)

    def estimate(name: str) -> Estimate:
        return jackknife(lambda keep: shares(tuple(keep.tolist())).get(name, float("nan")), n, confidence)

    whole = shares(tuple(range(n)))
    known = {name: value for name, value in whole.items() if np.isfinite(value)}
    return {
        name: _bound(estimate(name) if name in model.others else Estimate(value=value, n=n))
        for name, value in known.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Model:
    """Orthonormal bases (cell, dimension) of the levels' indicators.

    everything: of all factors. others: for each factor, of all the others.
    """

    everything: Floats
    others: Mapping[str, Floats]

    @classmethod
    def build(cls, cells: pd.DataFrame) -> _Model:
        indicators = _indicators(cells)
        others = {name: _basis([columns for other, columns in indicators.items() if other != name], len(cells))
                  for name in indicators}  # fmt: skip
        return cls(everything=_basis(list(indicators.values()), len(cells)), others=others)


def _partition(products: Floats, model: _Model) -> tuple[dict[str, float], dict[str, int]]:
    n_cells, n = products.shape[:2]
    # In a complete block factors only affect the means over replicates, and replicates only the means over cells.
    of_cells, of_replicates = n * products.mean(axis=(1, 3)), n_cells * products.mean(axis=(0, 2))
    total = np.einsum("crcr->", products) - products.sum() / (n_cells * n)
    explained, dimensions = _explained(of_cells, model.everything), model.everything.shape[1]
    squares = {name: explained - _explained(of_cells, basis) for name, basis in model.others.items()}
    degrees = {name: dimensions - basis.shape[1] for name, basis in model.others.items()}
    squares[REPLICATE] = float(np.trace(of_replicates) - of_replicates.sum() / n)
    degrees[REPLICATE] = n - 1
    squares[RESIDUAL] = float(total - explained - squares[REPLICATE])
    degrees[RESIDUAL] = (n_cells * n - 1) - dimensions - (n - 1)
    return squares, degrees


def _omega_squared(products: Floats, model: _Model) -> dict[str, float]:
    """The share of every term; empty where nothing varies, or the residual has no degree of freedom."""
    squares, degrees = _partition(products, model)
    n_networks = products.shape[0] * products.shape[1]
    total = float(np.einsum("crcr->", products) - products.sum() / n_networks)
    if degrees[RESIDUAL] < 1 or products.shape[1] < 2 or total <= 1e-18:
        return {}
    chance = squares[RESIDUAL] / degrees[RESIDUAL]  # what a degree of freedom explains without an effect
    # The residual counts a degree of freedom for every network, so that the shares of crossed factors sum to 1.
    explained = {name: squares[name] - degrees[name] * chance for name in squares} | {RESIDUAL: n_networks * chance}
    return {name: value / (total + chance) for name, value in explained.items()}


def permutation_p_value(
    products: Floats, cells: pd.DataFrame, factor: str, random: np.random.Generator, permutations: int = PERMUTATIONS
) -> float:
    """The p value of the hypothesis that a factor has no effect: how often a permutation explains as much.

    The levels of the factor are permuted in every replicate, alike for all cells: networks of one replicate share
    seeds, and a seed may move all networks at one level alike, so only whole levels are exchangeable. Cells at whose
    combination of the other factors a level is missing take no part. A small block has few distinct permutations: two
    levels and three replicates have eight, and each explains as much as the one with all levels swapped, so no p value
    is below 2 / 8.
    """
    whole = _find_whole_groups(cells, factor)
    if not whole.size:
        return 1.0
    products, cells = products[whole][:, :, whole], cells.iloc[whole]
    n_cells, n = products.shape[:2]
    networks = (
        cells.loc[cells.index.repeat(n)].reset_index(drop=True).assign(**{REPLICATE: np.tile(np.arange(n), n_cells)})
    )
    indicators = _indicators(networks)
    labels = indicators.pop(factor).argmax(axis=1)
    mean = np.full((len(networks), 1), len(networks) ** -0.5)
    fixed = np.column_stack([mean, _basis(list(indicators.values()), len(networks))])
    left = np.eye(len(networks)) - fixed @ fixed.T
    inner = left @ products.reshape(len(networks), -1) @ left

    permuted = _permute_levels(labels.reshape(n_cells, n), random, permutations)
    explained = _explained_by_each(inner, left, (permuted[..., None] == np.unique(labels)).astype(float))
    return float(np.mean(explained >= explained[0] * (1 - 1e-9)))  # the first is as observed, and counts


def _find_whole_groups(cells: pd.DataFrame, factor: str) -> Numbers:
    """The numbers of the cells at whose combination of the other factors all levels of a factor occur."""
    groups = cell_numbers(cells, [str(name) for name in cells if name != factor])
    levels = cell_numbers(cells, [factor])
    return np.flatnonzero(levels.groupby(groups).transform("nunique") == levels.nunique())


def _permute_levels(labels: Numbers, random: np.random.Generator, permutations: int) -> Numbers:
    """The labels as observed, followed by permutations of levels in each replicate: (1 + permutation, network).

    labels: (cell, replicate), numbers of levels.
    """
    levels, n = np.unique(labels), labels.shape[1]
    dealt = random.permuted(np.tile(levels, (permutations, n, 1)), axis=2)  # (permutation, replicate, level)
    permuted = np.tile(labels, (1 + permutations, 1, 1))
    permuted[1:] = dealt[:, np.arange(n)[None], labels]
    return permuted.reshape(1 + permutations, -1)


def _explained_by_each(inner: Floats, left: Floats, indicators: Floats) -> Floats:
    """The sum of squares that each set of indicators, (set, network, level), adds to the other factors."""
    permutations, networks, levels = indicators.shape
    flat = indicators.swapaxes(0, 1).reshape(networks, -1)
    squares, norms = (
        indicators.swapaxes(1, 2) @ (matrix @ flat).reshape(networks, permutations, levels).swapaxes(0, 1)
        for matrix in (inner, left)
    )
    return np.asarray(np.einsum("pij,pji->p", np.linalg.pinv(norms, rcond=1e-9, hermitian=True), squares))


def _explained(products: Floats, basis: Floats) -> float:
    return float(np.einsum("cd,ce,ed->", basis, products, basis, optimize=True))


def _basis(indicators: Sequence[Floats], rows: int) -> Floats:
    """An orthonormal basis, (row, dimension), of the centred indicators of factors."""
    columns = np.column_stack([np.zeros(rows), *indicators])
    left, size, _ = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
    return np.asarray(left[:, size > 1e-9 * max(1.0, size.max())], dtype=float)


def _indicators(frame: pd.DataFrame) -> dict[str, Floats]:
    """For each column with more than one level its indicators, (row, level): 1 where the row has the level."""
    codes = {str(name): cell_numbers(frame, [str(name)]).to_numpy() for name in frame}
    return {
        name: (code[:, None] == np.unique(code)).astype(float)
        for name, code in codes.items()
        if np.unique(code).size > 1
    }


def varied(cells: pd.DataFrame) -> list[str]:
    """The columns with more than one level."""
    return list(_indicators(cells))


def _bound(share: Estimate) -> Estimate:
    """The share limited to 0 to 1: chance may put the estimate a little outside."""
    value, low, high = (
        None if end is None else min(max(end, 0.0), 1.0) for end in (share.value, share.low, share.high)
    )
    return Estimate(value=value, low=low, high=high, n=share.n)
