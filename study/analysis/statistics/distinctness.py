"""How distinct the layers of a network are: whether they differ by more than seeds move a layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from study.analysis.statistics.distances import squared_jensen_shannon
from study.analysis.statistics.intervals import Floats
from study.analysis.statistics.moments import Moments, build_moments
from study.config.choice_space import ChoiceSpace


def layer_weights(switch: pd.DataFrame, space: ChoiceSpace) -> dict[str, Floats]:
    """The weights of every layer by the network's key: arrays (layer, axis, member), with 0 outside of a pool.

    switch: rows of one epoch of each trial: key, layer_index, statistic, normalizer, weight.
    """
    wanted = pd.MultiIndex.from_product([space.axis_names, space.member_names])
    columns = ["key", "layer_index", "statistic", "normalizer"]
    table = switch.set_index(columns)["weight"].unstack(["statistic", "normalizer"])
    table = table.reindex(columns=wanted).fillna(0.0).sort_index()
    shape = (-1, len(space.axes), len(space.members))
    return {str(key): part.to_numpy(float).reshape(shape) for key, part in table.groupby(level="key")}


def layer_distances(cells: Sequence[Floats]) -> Moments:
    """How far the layers of a network lie apart, and replicates of one layer: means over cells.

    cells: arrays (replicate, layer, axis, member), NaN for a replicate without a result. Between: the squared distance
    of a layer in one replicate from another layer in another replicate; within: that of the same layer in both. Both
    contain the noise of two seeds; distances between layers of one network would contain less, as seeds move all layers
    of a network together. Cells without any result are left out. Raises `ValueError` where no cell has two layers.
    """
    with_result = [weights for weights in cells if np.isfinite(weights).all(axis=(1, 2, 3)).any()]
    tables = [_tabulate_pairs(weights) for weights in with_result if weights.shape[1] > 1]
    if not tables:
        raise ValueError("cells: no network has two layers")
    with warnings.catch_warnings():  # a pair of replicates that no cell has stays NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        between, within = np.nanmean(tables, axis=0)
    return build_moments(between, within)


def place_distances(values: Floats) -> Moments:
    """The same for places in a block. values: (cell, replicate, axis, place, member), NaN without a result."""
    return layer_distances(list(values.transpose(0, 1, 3, 2, 4)))


def _tabulate_pairs(weights: Floats) -> Floats:
    """Mean squared Jensen-Shannon distances (between or within, replicate, replicate, axis)."""
    replicates, layers, axes = weights.shape[:3]
    present = np.flatnonzero(np.isfinite(weights).all(axis=(1, 2, 3)))
    table = np.full((2, replicates, replicates, axes), np.nan)
    networks = weights[present].reshape(len(present) * layers, axes, 1, -1)
    squared = squared_jensen_shannon(networks).reshape(len(present), layers, len(present), layers, axes)
    same = np.einsum("rlsla->rsa", squared)
    other = squared.sum(axis=(1, 3)) - same
    table[:, present[:, None], present] = other / (layers * (layers - 1)), same / layers
    return table
