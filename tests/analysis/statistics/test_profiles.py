from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.analysis.statistics.intervals import Floats
from study.analysis.statistics.profiles import (
    DEPTH_GRID,
    FLOOR,
    FactorDistances,
    comparable_pairs,
    count_cell_pairs,
    depth_profiles,
    effect_contrast,
    euclidean,
    factor_distances,
    factor_effect,
    log_ratios,
    profile_divergence,
    squared_distances,
    transfer_distance,
)
from study.config.choice_space import NORMALIZATION

DRAWS = 200


def _layers(weights: dict[float, tuple[float, ...]], pool: tuple[str, ...] = ("in", "ln", "bn")) -> pd.DataFrame:
    rows = [(depth, statistic, name, weight) for depth, row in weights.items() for statistic in ("mean", "var")
            for name, weight in zip(pool, row, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["depth_fraction", "statistic", "normalizer", "weight"])


def _profile(layers: pd.DataFrame) -> Floats:
    return depth_profiles(layers.assign(key="one"), NORMALIZATION)["one"]


def test_profiles_of_many_networks_are_those_of_each() -> None:
    shallow, deep = _layers({0.0: (0.2, 0.3, 0.5)}), _layers({0.5: (1.0, 0.0, 0.0), 0.2: (0.0, 0.5, 0.5)})
    both = depth_profiles(
        pd.concat([deep.assign(key="b"), shallow.assign(key="B")]).sample(frac=1, random_state=0), NORMALIZATION
    )
    assert set(both) == {"b", "B"}
    np.testing.assert_array_equal(both["b"], _profile(deep))
    np.testing.assert_array_equal(both["B"], _profile(shallow))
    assert depth_profiles(deep.assign(key="b")[:0], NORMALIZATION) == {}


def test_profiles_of_different_depth_align() -> None:
    shallow = _profile(_layers({0.0: (0.2, 0.3, 0.5), 1.0: (0.6, 0.3, 0.1)}))
    deep = _profile(_layers({d: (0.2 + 0.4 * d, 0.3, 0.5 - 0.4 * d) for d in np.linspace(0, 1, 31)}))
    assert shallow.shape == (2, DEPTH_GRID.size, 4)
    np.testing.assert_allclose(shallow, deep, atol=1e-12)
    np.testing.assert_allclose(shallow.sum(-1), 1)


def test_a_profile_of_one_layer_and_of_a_smaller_pool() -> None:
    profile = _profile(_layers({0.5: (0.25, 0.75)}, pool=("in", "ln")))
    np.testing.assert_allclose(profile, np.broadcast_to([0.25, 0.75, 0, 0], profile.shape))


def test_distance_runs_from_zero_to_one() -> None:
    ones = [_profile(_layers({0.5: weights})) for weights in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))]
    np.testing.assert_allclose(profile_divergence(ones[0], ones[1]), [1, 1])
    np.testing.assert_allclose(profile_divergence(ones[0], ones[0]), [0, 0])


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_distance_is_symmetric_and_finite_for_almost_equal_profiles(raw: list[float]) -> None:
    first, second = (np.broadcast_to(np.array(part) / sum(part), (2, 11, 3)) for part in (raw[:3], raw[3:]))
    np.testing.assert_allclose(profile_divergence(first, second), profile_divergence(second, first))
    assert np.isfinite(profile_divergence(first, first * (1 + 1e-16))).all()


# ---------------------------------------------------------------------------------------- factor effects


def _profiles(replicates: int, moves: tuple[float, float], seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """2 x 2 cells; levels of `a` and `b` move the logits by `moves`; seeds move them, in part in all cells alike."""
    random = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=(2, 2, 5, 3))
    cells = pd.DataFrame(list(product((0, 1), (0, 1))), columns=["a", "b"])
    shared = 0.2 * random.normal(size=(replicates, 2, 1, 3))
    logits = np.stack([
        shared + 0.3 * random.normal(size=(replicates, 2, 1, 3)) + 0.2 * random.normal(size=(replicates, 2, 5, 3))
        + moves[0] * a * direction[0] + moves[1] * b * direction[1]
        for a, b in cells.to_numpy()
    ])  # fmt: skip
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True), cells


def _distances(profiles: Floats, cells: pd.DataFrame, factor: str) -> FactorDistances:
    return factor_distances(squared_distances(profiles), comparable_pairs(cells, factor))


def _effect(replicates: int, move: float, seed: int) -> Any:
    return factor_effect(_distances(*_profiles(replicates, (move, 0.0), seed), "a"), 0.95)


def test_a_planted_effect_is_found() -> None:
    profiles, cells = _profiles(5, (1.5, 0.0), 1)
    strong, weak = (_distances(profiles, cells, name) for name in ("a", "b"))
    assert factor_effect(strong, 0.95).above(1.5)
    assert not factor_effect(weak, 0.95).above(1)
    assert effect_contrast(strong, weak, 0.95).above(1)
    assert factor_effect(strong, 0.95, 0).above(1)


@pytest.mark.parametrize("replicates", [3, 5])
def test_no_effect_is_one_with_few_false_positives(replicates: int) -> None:
    found = [_effect(replicates, 0.0, seed) for seed in range(DRAWS)]
    assert np.mean([np.log(item.value) for item in found]) == pytest.approx(0, abs=0.02)
    assert sum(not item.contains(1) for item in found) / DRAWS <= 0.06


def test_interval_of_an_effect_covers_the_truth() -> None:
    truth = _effect(150, 0.6, 12345).value
    covered = sum(_effect(5, 0.6, seed).contains(truth) for seed in range(DRAWS))
    assert truth > 1.2
    assert covered / DRAWS >= 0.92


def test_no_interval_below_three_replicates() -> None:
    assert _effect(1, 1.0, 0).value is None
    assert _effect(2, 1.0, 0).value > 1
    assert _effect(2, 1.0, 0).low is None


def test_no_effect_to_measure_where_seeds_move_nothing() -> None:
    profiles, cells = _profiles(4, (1.0, 0.0), 0)
    assert factor_effect(_distances(profiles[:, :1].repeat(4, axis=1), cells, "a"), 0.95).value is None


def test_distances_need_cells_that_differ_in_the_factor_alone() -> None:
    profiles, cells = _profiles(3, (1.0, 0.0), 0)
    with pytest.raises(ValueError, match="differ in the factor alone"):
        _distances(profiles[[0, 3]], cells.iloc[[0, 3]], "a")


def test_cells_at_the_same_level_are_no_pair() -> None:
    cells = pd.DataFrame({"task": ["a", "b", "b", "b"], "dataset": ["x", "x", "x", "y"]})
    assert (count_cell_pairs(cells, "task"), count_cell_pairs(cells, "dataset")) == (2, 2)


# ------------------------------------------------------------------------------------------------ log-ratios


def test_log_ratios_are_centred_logarithms() -> None:
    weights = np.array([[0.2, 0.3, 0.5, 0.0], [0.6, 0.2, 0.2, 0.0]])  # the last member is in no pool
    np.testing.assert_allclose(log_ratios(weights), [np.log(row) - np.log(row).mean() for row in weights[:, :3]])


def test_a_zero_counts_as_the_floor_and_the_others_shrink() -> None:
    weights = np.array([[0.0, 0.4, 0.6], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
    first, second = np.log([FLOOR, 0.4 * (1 - FLOOR), 0.6 * (1 - FLOOR)]), np.log([FLOOR, FLOOR, 1 - 2 * FLOOR])
    np.testing.assert_allclose(log_ratios(weights)[:2], [first - first.mean(), second - second.mean()])
    tiny = np.array([[1e-9, 0.4, 0.6 - 1e-9], *weights[1:]])  # no further away than nothing is
    np.testing.assert_allclose(log_ratios(tiny), log_ratios(weights), atol=1e-6)


def test_aitchison_distance_is_that_of_log_ratios_of_all_pairs() -> None:
    """Aitchison's own form: the sum of squares over pairs of members, over their number."""
    first, second = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    by_pair = [np.log(first[i] / first[j]) - np.log(second[i] / second[j]) for i in range(3) for j in range(3)]
    expected = np.sqrt(np.sum(np.square(by_pair)) / (2 * 3))
    coordinates = log_ratios(np.array([first, second]))
    assert euclidean(coordinates[0], coordinates[1]) == pytest.approx(expected)


def test_squared_distances_are_those_of_each_pair() -> None:
    profiles, _ = _profiles(3, (1.0, 0.5), 0)
    squared = squared_distances(profiles)
    np.testing.assert_allclose(squared[1, 2, 3, 0], profile_divergence(profiles[1, 2], profiles[3, 0]))
    np.testing.assert_array_equal(squared[1, 2, 3, 0], squared[3, 0, 1, 2])


def test_cells_that_differ_in_their_spread_alone_lie_no_further_apart_than_seeds() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 100, 2, 3, 3)) * np.array([0.2, 1.0])[:, None, None, None, None]
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    pairs = comparable_pairs(pd.DataFrame({"a": [0, 1]}), "a")
    tables = [squared_distances(weights), squared_distances(logits, euclidean)]
    by_divergence, exact = (factor_effect(factor_distances(table, pairs), 0.95).value for table in tables)
    assert exact == pytest.approx(1.0, abs=0.02)
    assert by_divergence is not None
    assert by_divergence < 1.05  # the centre of spread weights is elsewhere, by a little
    unsquared = factor_distances(np.sqrt(tables[0]), pairs)
    assert unsquared.between.mean() > 1.1 * unsquared.within.mean()


@pytest.mark.parametrize(("move", "found"), [(1.5, True), (0.0, False)])
def test_aitchison_finds_what_is_there(move: float, found: bool) -> None:
    profiles, cells = _profiles(5, (move, 0.0), 1)
    distances = squared_distances(log_ratios(profiles), euclidean)
    assert factor_effect(factor_distances(distances, comparable_pairs(cells, "a")), 0.95).above(1.0) == found


# -------------------------------------------------------------------------------------------------- transfer


def _moved(replicates: int, seed: int, kept: float) -> tuple[Floats, Floats]:
    """What networks chose before and after: a part of the seed's choice is kept, the rest is drawn again at random."""
    random = np.random.default_rng(seed)
    before, other = 0.4 * random.normal(size=(2, 2, replicates, 2, 5, 3))
    logits = (before, np.sqrt(kept) * before + np.sqrt(1 - kept) * other)
    first, second = (np.exp(part) / np.exp(part).sum(axis=-1, keepdims=True) for part in logits)
    return first, second


def test_networks_that_choose_anew_move_as_far_as_seeds() -> None:
    found = [transfer_distance(*_moved(4, seed, 0.0), 0.95) for seed in range(DRAWS)]
    assert np.mean([np.log(item.value or 0) for item in found]) == pytest.approx(0, abs=0.02)
    assert sum(not item.contains(1) for item in found) / DRAWS <= 0.07


def test_networks_that_keep_their_choice_move_less() -> None:
    assert transfer_distance(*_moved(4, 0, 0.8), 0.95).below(1)
    before, _ = _moved(4, 0, 0.8)
    assert transfer_distance(before, before, 0.95).value is None  # a ratio of nothing
    assert transfer_distance(before[:, :1], before[:, :1], 0.95).value is None  # no seeds to compare with
