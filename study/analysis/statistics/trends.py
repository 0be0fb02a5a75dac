"""Trends of switch weights with depth, with receptive field, with B and with G x B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from study.analysis.statistics.cell_means import estimate_contrast
from study.analysis.statistics.intervals import Floats, cell_numbers
from study.config.choice_space import ChoiceSpace

BatchAxis = Literal["B", "G x B"]
AXES: tuple[BatchAxis, BatchAxis] = ("B", "G x B")


def network_means(switch: pd.DataFrame) -> pd.DataFrame:
    """Means of switch weights over the layers of networks: one row per key, one column per (statistic, normalizer)."""
    means = switch.groupby(["key", "statistic", "normalizer"], observed=True)["weight"].mean()
    table: pd.DataFrame = means.astype(float).unstack(["statistic", "normalizer"])
    return table


def tracked_shares(switch: pd.DataFrame, space: ChoiceSpace) -> pd.DataFrame:
    """The weight of the tracked member in each network, a mean over layers: over all axes, and for each axis.

    One row per key; the columns are `bn_share`, `bn_share_mean`, `bn_share_var` where `bn` is tracked.
    """
    share = f"{space.tracked[0]}_share"
    shares = network_means(switch[switch["normalizer"].eq(space.tracked[0])]).droplevel("normalizer", axis=1)
    shares = shares.reindex(columns=list(space.axis_names)).add_prefix(f"{share}_")
    table: pd.DataFrame = shares.assign(**{share: shares.mean(axis=1)})[[share, *shares]]
    return table


def rank_trends(switch: pd.DataFrame, position: str, value: str = "weight") -> pd.DataFrame:
    """Partial rank correlation of a column with the column `position`, given place, over the layers of each network.

    Both are ranked over the layers of a network; the mean rank of each place (first norm of a block, shortcut, ...) is
    subtracted, and what remains is correlated: Spearman's correlation with indicators of place as covariates. So layers
    of the same place are compared, and weights that alternate from place to place do not make a trend.

    One row per key, one column per (statistic, normalizer). Layers without a position are left out. Networks have no
    trend, and are left out, where position does not vary among layers of the same place, or where there are fewer than
    two layers more than places. A value that is the same in all layers of each place has trend 0.
    """
    by = ["key", "statistic", "normalizer"]
    known = switch[switch[position].notna()]
    networks = known.groupby(by, observed=True)
    number, place = networks.ngroup(), known.groupby([*by, "place"], observed=True).ngroup()
    ranks = known[[position, value]].astype(float).groupby(number).rank()
    # Ranks are multiples of a half, so equal ones leave a remainder of exactly 0.
    remainder = ranks - ranks.groupby(place).transform("mean")
    x, y = remainder[position], remainder[value]
    products = pd.DataFrame({"xy": x * y, "xx": x * x, "yy": y * y, "spare": 1.0}, index=known.index)
    sums = products.groupby(number).sum().set_axis(networks.size().index)
    sums["spare"] -= networks["place"].nunique()
    trend = (sums["xy"] / np.sqrt(sums["xx"] * sums["yy"])).where(sums["yy"] > 0, 0.0)
    table: pd.DataFrame = trend[(sums["spare"] >= 2) & (sums["xx"] > 0)].unstack(["statistic", "normalizer"])
    return table


def slope_weights(cells: pd.DataFrame, others: Sequence[str], axes: Sequence[str]) -> Floats | None:
    """Weights of cells whose sum with the cells' means is a least-squares slope on log2 of the axes: (axis, cell).

    Cells are compared where they agree in `others`. axes: columns of positive numbers. None where an axis does not
    vary, or not independently of the other axes.
    """
    values = np.log2(cells[list(axes)].to_numpy(dtype=float))
    groups = cell_numbers(cells, others).to_numpy()
    for group in np.unique(groups):
        values[groups == group] -= values[groups == group].mean(axis=0)
    if np.linalg.matrix_rank(values, tol=1e-6) < len(axes):
        return None
    return np.asarray(np.linalg.pinv(values), dtype=float)  # the values are centred, and so are the weights


def leading_axis(grid: Floats, weights: Floats, confidence: float) -> BatchAxis | None:
    """Which of B and G x B the share of the tracked member follows more; None where the intervals leave it open.

    grid: shares (cell, replicate), NaN where missing. weights: from `slope_weights`, for the two axes. The slope of the
    leading one lies on one side of 0, and so do its difference from and its sum with the other slope: then the other is
    smaller in absolute value.
    """
    for first, axis in enumerate(AXES):
        lead, other = weights[first], weights[1 - first]
        sign = np.sign(estimate_contrast(grid, lead, confidence).value or 0.0)
        if all(estimate_contrast(grid, sign * lead + part * other, confidence).above(0) for part in (-1, 0, 1)):
            return axis
    return None
