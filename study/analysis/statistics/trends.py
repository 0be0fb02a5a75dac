"""Trends of switch weights with depth, with receptive field, with B and with G x B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.statistics.intervals import Floats, adjust_holm, cell_numbers, mean_p_value, replicate_interval
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


def batch_trends(values: Floats, levels: Floats) -> tuple[Floats, list[float | None]]:
    """The change of each number for a doubling of B, and the p values of a monotone trend.

    values: (replicate, level, number), means over cells that agree in all but B. Returns least-squares slopes on
    log2 B, (replicate, number), and p values adjusted by Holm: of Page's two-sided test with replicates as blocks, or
    of a paired t test where there are two levels. The p values are None where there is one replicate.
    """
    doublings = np.log2(levels)
    doublings = doublings - doublings.mean()
    slopes = np.einsum("l,rln->rn", doublings, values) / np.sum(doublings**2)
    if len(levels) < 3 or len(values) < 2:
        return slopes, adjust_holm([mean_p_value(column) for column in slopes.T])
    return slopes, adjust_holm([page_p_value(values[:, :, number]) for number in range(values.shape[2])])


def page_p_value(values: Floats) -> float:
    """The two-sided p value of Page's trend test over the levels of a table (block, level) with 3 levels or more."""
    rising, falling = (stats.page_trend_test(table).pvalue for table in (values, values[:, ::-1]))
    return float(min(1.0, 2 * min(rising, falling)))


def axis_slopes(cells: pd.DataFrame, others: Sequence[str], values: Floats) -> Floats | None:
    """Least-squares slopes of values (cell, replicate) on log2 B and log2 G x B in each replicate: (axis, replicate).

    Cells are compared where they agree in `others`. None where B and G x B do not vary independently.
    """
    axes = np.log2(cells[["statistics_batch", "gradient_batch"]].to_numpy(dtype=float))
    groups = cell_numbers(cells, others).to_numpy()
    centred, target = axes.copy(), np.array(values, dtype=float)
    for group in np.unique(groups):
        centred[groups == group] -= axes[groups == group].mean(axis=0)
        target[groups == group] -= values[groups == group].mean(axis=0)
    if np.linalg.matrix_rank(centred, tol=1e-6) < 2:
        return None
    return np.asarray(np.linalg.lstsq(centred, target, rcond=None)[0], dtype=float)


def leading_axis(slopes: Mapping[BatchAxis, Floats], confidence: float) -> BatchAxis | None:
    """Which of B and G x B the share of the tracked member follows more; None where the intervals leave it open.

    The slope of the leading one lies on one side of 0, and so do its difference from and its sum with the other slope:
    then the other is smaller in absolute value.
    """
    for axis, other in (AXES, AXES[::-1]):
        lead = slopes[axis] * np.sign(slopes[axis].mean())
        if all(replicate_interval(lead + part * slopes[other], confidence).above(0) for part in (-1, 0, 1)):
            return axis
    return None
