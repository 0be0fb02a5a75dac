from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.displacement import displacement, relative_displacement
from study.analysis.statistics.distances import squared_jensen_shannon
from study.analysis.statistics.distinctness import layer_distances, layer_weights, place_distances
from study.analysis.statistics.intervals import Estimate, Floats
from study.config.choice_space import NORMALIZATION
from tests.analysis.estimates import holds

DRAWS = 200


def _draw(seed: int, layers_differ: float = 0.0, of_network: float = 0.3, replicates: int = 4) -> list[Floats]:
    """Two cells of networks with 6 layers: logits of a layer (in all seeds), of a network, and of noise."""
    random = np.random.default_rng(seed)
    shape = (2, replicates, 6, 2, 3)
    logits = random.normal(0, 0.3, shape) + random.normal(0, of_network, (2, replicates, 1, 2, 3))
    weights = np.exp(logits + layers_differ * random.normal(size=(2, 1, 6, 2, 3)))
    return list(weights / weights.sum(axis=-1, keepdims=True))


def _relative(seed: int, axis: int | None = None, **truth: Any) -> Estimate:
    return relative_displacement(layer_distances(_draw(seed, **truth)), 0.95, axis)


@pytest.mark.parametrize("of_network", [0.0, 0.3], ids=["layers move alone", "seeds move all layers together"])
def test_layers_of_one_distribution_are_no_more_distinct_than_seeds(of_network: float) -> None:
    found = [_relative(seed, of_network=of_network) for seed in range(DRAWS)]
    squares = np.array([np.sign(item.value or 0) * (item.value or 0) ** 2 for item in found])
    assert abs(squares.mean()) < 3.5 * squares.std() / np.sqrt(DRAWS)
    assert sum(not holds(item, 0) for item in found) <= 0.09 * DRAWS
    assert sum(item.above(0) for item in found) <= 0.055 * DRAWS


def test_layers_within_a_network_would_hold_less_noise_than_replicates() -> None:
    """Why layers are compared between replicates."""
    cells = _draw(0)
    squared = [squared_jensen_shannon(network[:, :, None]) for network in cells[0]]
    layers = np.mean([table[~np.eye(6, dtype=bool)] for table in squared])
    assert layers < 0.8 * layer_distances(cells).seeds[0].mean()


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_layers_that_differ_are_found(axis: int | None) -> None:
    assert sum(_relative(seed, axis, layers_differ=0.5, replicates=8).above(0) for seed in range(20)) >= 18


def test_without_noise_the_displacement_is_the_root_mean_squared_distance_of_layers() -> None:
    layers = np.random.default_rng(1).dirichlet(np.ones(3), size=(5, 2))
    moments = layer_distances([np.repeat(layers[None], 3, axis=0)])
    squared = squared_jensen_shannon(layers[:, :, None])[~np.eye(5, dtype=bool)]
    assert moments.seeds_change_nothing
    assert displacement(moments, 0.95).value == pytest.approx(np.sqrt(squared.mean()))
    assert displacement(moments, 0.95, axis=1).value == pytest.approx(np.sqrt(squared[:, 1].mean()))
    assert displacement(moments, 0.95).low == displacement(moments, 0.95).value


def test_a_replicate_without_a_result_is_not_counted() -> None:
    cells = _draw(2, layers_differ=0.5, replicates=5)
    expected = displacement(layer_distances([cell[[0, 2, 3]] for cell in cells]), 0.95)
    for cell in cells:
        cell[[1, 4]] = np.nan
    found = displacement(layer_distances(cells), 0.95)
    assert (found.n, found.low, found.high) == pytest.approx((3, expected.low, expected.high))


def test_places_are_compared_as_layers() -> None:
    cells = np.stack(_draw(3, layers_differ=0.5))
    cells[1, 2] = np.nan  # a network without a result
    found, expected = place_distances(cells.transpose(0, 1, 3, 2, 4)), layer_distances(list(cells))
    np.testing.assert_allclose(found.squared, expected.squared)


def test_one_replicate_has_nothing_to_compare_with() -> None:
    moments = layer_distances(_draw(0, replicates=1))
    assert displacement(moments, 0.95).value is None
    assert relative_displacement(moments, 0.95).value is None


def test_a_network_of_one_layer_has_none() -> None:
    with pytest.raises(ValueError, match="two layers"):
        layer_distances([_draw(0)[0][:, :1]])


def test_layers_by_key_with_nothing_outside_of_the_pool() -> None:
    rows = [
        (key, layer, statistic, name, weight)
        for key, layer, statistic in product("xy", range(3), ("var", "mean"))
        for name, weight in (("bn", 0.2 + layer / 10), ("in", 0.8 - layer / 10))
    ]
    found = layer_weights(
        pd.DataFrame(rows, columns=["key", "layer_index", "statistic", "normalizer", "weight"]), NORMALIZATION
    )
    assert list(found) == ["x", "y"]
    assert found["y"].shape == (3, 2, 4)
    assert found["y"][:, 0] == pytest.approx(np.array([[0.8, 0, 0.2, 0], [0.7, 0, 0.3, 0], [0.6, 0, 0.4, 0]]))
