from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.distinctness import layer_distances, layer_weights
from study.analysis.statistics.intervals import Estimate, Floats
from study.analysis.statistics.profiles import factor_effect, profile_divergence
from study.config.choice_space import NORMALIZATION

DRAWS = 200


def _draw(seed: int, layers_differ: float = 0.0, of_network: float = 0.3, replicates: int = 4) -> list[Floats]:
    """Two cells of networks with 6 layers: logits of a layer (in all seeds), of a network, and of noise."""
    random = np.random.default_rng(seed)
    shape = (2, replicates, 6, 2, 3)
    logits = random.normal(0, 0.3, shape) + random.normal(0, of_network, (2, replicates, 1, 2, 3))
    weights = np.exp(logits + layers_differ * random.normal(size=(2, 1, 6, 2, 3)))
    return list(weights / weights.sum(axis=-1, keepdims=True))


def _ratio(seed: int, axis: int | None = None, **truth: Any) -> Estimate:
    return factor_effect(layer_distances(_draw(seed, **truth)), 0.95, axis)


@pytest.mark.parametrize("of_network", [0.0, 0.3], ids=["layers move alone", "seeds move all layers together"])
def test_layers_of_one_distribution_are_no_more_distinct_than_seeds(of_network: float) -> None:
    found = [_ratio(seed, of_network=of_network) for seed in range(DRAWS)]
    assert np.mean([item.value for item in found if item.value]) == pytest.approx(1, abs=0.01)
    assert sum(not item.contains(1) for item in found) <= 0.05 * DRAWS


def test_layers_within_a_network_would_hold_less_noise_than_replicates() -> None:
    """Why layers are compared between replicates."""
    (weights, _), distances = _draw(0), layer_distances(_draw(0))
    layers = [
        profile_divergence(one[:, None, :, None], one[None, :, :, None])[~np.eye(6, dtype=bool)] for one in weights
    ]
    assert np.mean(layers) < 0.8 * distances.within[~np.eye(4, dtype=bool)].mean()


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_layers_that_differ_are_found(axis: int | None) -> None:
    assert sum(_ratio(seed, axis, layers_differ=0.5, replicates=8).above(1) for seed in range(20)) >= 18


def test_one_replicate_has_nothing_to_compare_with() -> None:
    assert factor_effect(layer_distances(_draw(0, replicates=1)), 0.95) == Estimate(n=1)


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
