"""How distinct the layers of a network are: whether they differ by more than seeds move a layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import Floats
from study.analysis.statistics.profiles import FactorDistances, profile_divergence
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


def layer_distances(cells: Sequence[Floats]) -> FactorDistances:
    """Squared Jensen-Shannon distances between layers, and between replicates of one layer, averaged over cells.

    cells: arrays (replicate, layer, axis, member). `between` is the distance of a layer in one replicate from another
    layer in another replicate, `within` that of the same layer in both. Both contain the noise of two seeds, so their
    ratio is 1 where all layers draw their weights from one distribution, and above 1 where they do not: the distance is
    of negative type (its mean between two distributions is at least its mean within them; Székely and Rizzo 2013).
    Distances between layers of the same network would contain less noise, as seeds move all layers of a network
    together. Measured on layers of one distribution: the mean ratio is 1.00, and 99 % of 95 % intervals of
    `factor_effect` contain 1 (200 draws each at 3, 4 and 8 replicates).
    Raises `ValueError` where no cell has two layers.
    """
    tables = [_cell_distances(weights) for weights in cells if weights.shape[1] > 1]
    if not tables:
        raise ValueError("cells: no network has two layers")
    between, within = np.mean(tables, axis=0)
    return FactorDistances(between=between, within=within)


def _cell_distances(weights: Floats) -> Floats:
    """Squared distances (between or within, replicate, replicate, axis); 0 for a replicate and itself."""
    replicates, layers, axes = weights.shape[:3]
    same = np.eye(layers, dtype=bool)
    table = np.zeros((2, replicates, replicates, axes))
    for one, other in combinations(range(replicates), 2):
        first, second = (
            weights[one, :, None, :, None],
            weights[other, None, :, :, None],
        )  # every layer is a profile of one depth
        distance = profile_divergence(first, second)
        table[:, one, other] = table[:, other, one] = distance[~same].mean(axis=0), distance[same].mean(axis=0)
    return table
