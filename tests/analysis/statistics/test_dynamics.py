from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from study.analysis.statistics.dynamics import count_flips, network_dynamics, settle_epochs
from study.analysis.weight_tables import read_switch_weights
from study.config.choice_space import NORMALIZATION
from study.record.switch_weights import encode_parquet


def _path(*first: float) -> Any:
    """Weights (epoch, normalizer) of two normalizers, of which the first has these."""
    return np.array([[weight, 1 - weight] for weight in first])


@pytest.mark.parametrize(
    ("path", "epoch"),
    [
        (_path(0.5, 0.6, 0.8, 0.84, 0.8), 2),
        (_path(0.5, 0.8, 0.5, 0.8, 0.8), 3),  # it was there, and left
        (_path(0.5, 0.6, 0.7, 0.8, 0.9), 4),  # it never settles
        (_path(0.5, 0.5, 0.5), 0),  # it never moves
    ],
)
def test_a_layer_settles_when_it_stays(path: Any, epoch: int) -> None:
    assert settle_epochs(path, np.arange(len(path))) == epoch


def test_epochs_keep_their_own_numbers() -> None:
    assert settle_epochs(_path(0.5, 0.6, 0.8, 0.8), np.array([0, 3, 7, 8])) == 7


@pytest.mark.parametrize(
    ("path", "flips"),
    [
        (_path(0.5, 0.6, 0.9), 0),  # from equal weights to the first choice
        (_path(0.6, 0.4, 0.6), 2),
        (_path(0.6, 0.5, 0.4), 1),  # through a tie
        (_path(0.6, 0.5, 0.6), 0),  # to a tie and back
        (_path(0.5, 0.5, 0.5), 0),
        (np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]]), 2),  # sparse
        (_path(0.6), 0),
    ],
)
def test_flips_are_counted(path: Any, flips: int) -> None:
    assert count_flips(path) == flips


def _table(history: Any, *roles: str) -> Any:
    """The record of a network whose layers have these roles."""
    layers = [
        SimpleNamespace(layer=f"l{index}", layer_index=3 * index, role=role,
                        depth_fraction=0.0, stage=0, place="norm1", receptive_field=None)
        for index, role in enumerate(roles)
    ]  # fmt: skip
    steps: list[int] = list(range(len(history)))
    return read_switch_weights(
        io.BytesIO(encode_parquet(history, steps, layers, ("in", "bn"), NORMALIZATION, "cell", 2))
    )  # type: ignore[arg-type]


def _history(*layers: tuple[Any, Any]) -> Any:
    """(epoch, layer, statistic, normalizer) of layers that each have a path of means and one of variances."""
    return np.array(layers).transpose(2, 0, 1, 3).astype(np.float32)


def test_a_network_is_the_mean_of_its_layers_of_a_role() -> None:
    steady, late = _path(0.5, 0.5, 0.5, 0.5, 0.5), _path(0.5, 0.4, 0.6, 0.4, 0.9)
    history = _history((steady, late), (late, late), (late, late))
    table = _table(history, "backbone", "backbone", "decoder")
    for rows in (table, table.take(np.random.default_rng(0).permutation(table.num_rows))):
        found = network_dynamics(rows, "backbone", NORMALIZATION)
        assert found.index.tolist() == ["cell-r2"]
        assert found["convergence_epoch"].to_numpy().tolist() == [[2.0, 4.0]]
        assert found["convergence"].to_numpy().tolist() == [[0.5, 1.0]]
        assert found["flips"].to_numpy().tolist() == [[1.5, 3.0]]


def test_one_epoch_has_no_dynamics() -> None:
    one = _table(_history((_path(0.5), _path(0.5))), "backbone")
    assert network_dynamics(one, "backbone", NORMALIZATION).empty
    assert network_dynamics(one.slice(0, 0), "backbone", NORMALIZATION).empty
