"""How a choice develops during training: when a layer's weights settle, and how often the largest one changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from study.analysis.statistics.intervals import Floats, Numbers
from study.config.choice_space import ChoiceSpace

SETTLED = 0.05  # total variation distance: the weight that lies on other members than in the last epoch
TIED = 1e-6  # weights that differ by less count as equal: the precision of a softmax in float32
DYNAMICS = ("convergence_epoch", "convergence", "flips")


def network_dynamics(weights: pa.Table, role: str, space: ChoiceSpace) -> pd.DataFrame:
    """`DYNAMICS` of each network, means over its layers of a role: one row per key, one column per (number, axis).

    weights: the columns of `switch_weights.parquet`, text dictionary-encoded; the rows of a trial are contiguous, in
    any order. Networks with a single recorded epoch are left out.
    """
    rows = {key: _network_numbers(*history) for key, history in _histories(weights, role, space) if len(history[0]) > 1}
    columns = pd.MultiIndex.from_product([DYNAMICS, space.axis_names])
    values = np.reshape(list(rows.values()), (len(rows), len(columns)))
    table: pd.DataFrame = pd.DataFrame(values, index=list(rows), columns=columns)
    return table


def settle_epochs(weights: Floats, epochs: Numbers) -> NDArray[np.float64]:
    """The first epoch from which the weights stay within `SETTLED` of the last epoch's: an array (...).

    weights: (epoch, ..., member). epochs: their numbers, ascending. Distance: total variation.
    """
    far = np.abs(weights - weights[-1]).sum(axis=-1) / 2 > SETTLED
    last_far = np.where(far.any(axis=0), len(far) - 1 - far[::-1].argmax(axis=0), -1)
    return np.asarray(epochs[last_far + 1], dtype=float)


def count_flips(weights: Floats) -> NDArray[np.intp]:
    """How often another member gets the largest weight: an array (...). weights: (epoch, ..., member).

    While several weights are largest, the member before the tie stays the leader: a change through a tie is one flip,
    and a tie followed by the same leader is none. Leaving the equal weights of the start does not count as a flip.
    """
    largest = weights.max(axis=-1, keepdims=True)
    alone = (weights > largest - TIED).sum(axis=-1) == 1
    at = np.arange(len(weights)).reshape(-1, *[1] * (alone.ndim - 1))
    known = np.maximum.accumulate(np.where(alone, at, -1), axis=0)
    leader = np.take_along_axis(weights.argmax(axis=-1), np.maximum(known, 0), axis=0)
    return np.asarray(((leader[1:] != leader[:-1]) & (known[:-1] >= 0)).sum(axis=0))


def _network_numbers(weights: Floats, epochs: Numbers) -> Floats:
    """`DYNAMICS` by axis, flat: means over layers."""
    settled = settle_epochs(weights, epochs)
    part = (settled - epochs[0]) / (epochs[-1] - epochs[0])
    return np.asarray(np.mean([settled, part, count_flips(weights)], axis=1).ravel())


def _histories(weights: pa.Table, role: str, space: ChoiceSpace) -> Iterator[tuple[str, tuple[Floats, Numbers]]]:
    """The key of each trial, its weights (epoch, layer, axis, member), and the numbers of its epochs."""
    names, trial = _decode(weights["trial_id"])
    replicate, epoch, layer, weight = (
        weights[name].combine_chunks().to_numpy() for name in ("replicate", "epoch", "layer_index", "weight")
    )
    (axes, axis), (members, member) = (_decode(weights[name]) for name in ("statistic", "normalizer"))
    axis_place = np.array([space.axis_names.index(name) for name in axes], np.intp)
    kept = pc.equal(weights["role"].cast(pa.string()), role).to_numpy()
    starts = np.flatnonzero((np.diff(trial, prepend=-1) != 0) | (np.diff(replicate, prepend=-1) != 0))
    for start, end in pairwise([*starts, len(trial)]):
        rows = np.arange(start, end)[kept[start:end]]
        if not rows.size:
            continue
        epochs, epoch_at = np.unique(epoch[rows], return_inverse=True)
        layers, layer_at = np.unique(layer[rows], return_inverse=True)
        history = np.zeros((len(epochs), len(layers), len(space.axes), len(members)))
        history[epoch_at, layer_at, axis_place[axis[rows]], member[rows]] = weight[rows]
        yield f"{names[trial[start]]}-r{replicate[start]}", (history, epochs)


def _decode(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """The values of a dictionary-encoded column, and the index of each row's value."""
    coded = column.combine_chunks()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy()
