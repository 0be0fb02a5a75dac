from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from study.analysis.statistics.distances import (
    AITCHISON,
    DISTANCES,
    FLOOR,
    JENSEN_SHANNON,
    TOTAL_VARIATION,
    Distance,
    convert_margin,
    log_ratios,
)
from study.analysis.statistics.intervals import Floats

MARGINS = (0.01, 0.05, 0.2, 0.5)


def _profiles(seed: int, networks: int = 6, members: int = 3) -> Floats:
    """Weights (network, axis, position, member), none of them below `FLOOR`."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(members), size=(networks, 2, 5))
    return np.asarray((weights + 0.05) / (1 + 0.05 * members))


def _mean_over_positions(profiles: Floats, distance: object) -> Floats:
    """Squared distances (network, network, axis) from a function of two vectors of weights."""
    networks, axes, positions, _ = profiles.shape
    table = np.zeros((networks, networks, axes))
    for one, other, axis in np.ndindex(*table.shape):
        pairs = zip(profiles[one, axis], profiles[other, axis], strict=True)
        table[one, other, axis] = sum(distance(*pair) ** 2 for pair in pairs) / positions  # type: ignore[operator]
    return table


def test_jensen_shannon_is_that_of_scipy() -> None:
    profiles = _profiles(0)
    expected = _mean_over_positions(profiles, lambda first, second: jensenshannon(first, second, base=2))
    np.testing.assert_allclose(JENSEN_SHANNON.squared(profiles), expected, atol=1e-12)


def test_aitchison_is_the_euclidean_distance_of_isometric_log_ratios() -> None:
    from skbio.stats.composition import ilr  # at the top, each test process would import it: 2 s

    profiles = _profiles(1)
    expected = _mean_over_positions(profiles, lambda *pair: np.linalg.norm(np.subtract(*map(ilr, pair))))
    np.testing.assert_allclose(AITCHISON.squared(profiles), expected, atol=1e-12)


def test_total_variation_of_two_members_is_half_the_sum_of_absolute_differences() -> None:
    profiles = _profiles(2, members=2)
    expected = _mean_over_positions(profiles, lambda first, second: np.abs(first - second).sum() / 2)
    np.testing.assert_allclose(TOTAL_VARIATION.squared(profiles), expected, atol=1e-12)


def test_of_three_members_it_lies_within_fourteen_percent_of_total_variation() -> None:
    profiles = _profiles(3, networks=60)[:, :1, :1]
    exact = np.abs(profiles[:, None, 0, 0] - profiles[None, :, 0, 0]).sum(axis=-1) / 2
    apart = ~np.eye(60, dtype=bool)
    ratio = np.sqrt(TOTAL_VARIATION.squared(profiles)[..., 0][apart]) / exact[apart]
    assert ratio.min() >= 0.86
    assert ratio.max() <= 1.0 + 1e-9


# ---------------------------------------------------------------------------------- properties of all distances


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: each.name)
def test_squared_distances_are_symmetric_with_zeros_for_equal_profiles(distance: Distance) -> None:
    profiles = _profiles(4)
    table = distance.squared(np.concatenate([profiles, profiles[:1]]))
    np.testing.assert_array_equal(table, table.swapaxes(0, 1))
    np.testing.assert_array_equal(table[range(7), range(7)], 0)
    np.testing.assert_allclose(table[0, 6], 0, atol=1e-12)
    assert (table[0, 1:6] > 0).all()


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: each.name)
@given(seed=st.integers(0, 10_000))
def test_roots_satisfy_the_triangle_inequality(distance: Distance, seed: int) -> None:
    weights = np.random.default_rng(seed).dirichlet(np.full(3, 0.3), size=(3, 2, 4))
    roots = np.sqrt(distance.squared(weights))
    for axis in range(2):
        sides = np.sort([roots[0, 1, axis], roots[1, 2, axis], roots[0, 2, axis]])
        assert sides[2] <= sides[0] + sides[1] + 1e-7


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: each.name)
def test_distances_are_those_of_a_hilbert_space(distance: Distance) -> None:
    """Inner products from squared distances have no negative eigenvalue, so noise can be subtracted from squares."""
    squared = distance.squared(_profiles(5, networks=20))[..., 0]
    centring = np.eye(20) - 1 / 20
    assert np.linalg.eigvalsh(-centring @ squared @ centring / 2).min() > -1e-10


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: each.name)
def test_the_order_of_members_and_of_positions_does_not_matter(distance: Distance) -> None:
    profiles = _profiles(6)
    found = distance.squared(profiles[:, :, ::-1][..., [2, 0, 1]])
    np.testing.assert_allclose(found, distance.squared(profiles), atol=1e-12)


def test_jensen_shannon_runs_from_zero_to_one() -> None:
    one_hot = np.eye(3)[:, None, None]
    np.testing.assert_allclose(JENSEN_SHANNON.squared(one_hot)[..., 0], 1 - np.eye(3), atol=1e-12)


def test_almost_equal_profiles_have_a_finite_root() -> None:
    pair = np.stack([_profiles(7)[0], _profiles(7)[0] * (1 + 1e-16)])
    assert np.isfinite(np.sqrt([distance.squared(pair) for distance in DISTANCES])).all()


# ------------------------------------------------------------------------------------------------ log-ratios


def test_log_ratios_are_those_of_scikit_bio_over_the_members_in_use() -> None:
    from skbio.stats.composition import clr  # at the top, each test process would import it: 2 s

    weights = _profiles(8)
    unused = np.concatenate([weights, np.zeros_like(weights[..., :1])], axis=-1)  # a member that is in no pool
    np.testing.assert_allclose(log_ratios(unused), clr(weights.reshape(-1, 3)).reshape(weights.shape), atol=1e-12)


def test_a_zero_counts_as_the_floor_and_the_others_shrink() -> None:
    weights = np.array([[0.0, 0.4, 0.6], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
    first, second = np.log([FLOOR, 0.4 * (1 - FLOOR), 0.6 * (1 - FLOOR)]), np.log([FLOOR, FLOOR, 1 - 2 * FLOOR])
    np.testing.assert_allclose(log_ratios(weights)[:2], [first - first.mean(), second - second.mean()])
    tiny = np.array([[1e-9, 0.4, 0.6 - 1e-9], *weights[1:]])  # no further away than a zero
    np.testing.assert_allclose(log_ratios(tiny), log_ratios(weights), atol=1e-6)


def test_no_network_has_no_log_ratios() -> None:
    assert log_ratios(np.empty((0, 2, 5, 3))).shape == (0, 2, 5, 3)


# --------------------------------------------------------------------------------------------------- margins


@pytest.mark.parametrize("members", [2, 3, 5])
def test_a_margin_of_jensen_shannon_stays_itself(members: int) -> None:
    assert [convert_margin(each, JENSEN_SHANNON, members) for each in MARGINS] == pytest.approx(MARGINS)


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda each: each.name)
@pytest.mark.parametrize("members", [2, 3, 5])
def test_a_larger_margin_is_larger_in_every_unit(distance: Distance, members: int) -> None:
    found = [convert_margin(each, distance, members) for each in MARGINS]
    assert found == sorted(set(found))


@pytest.mark.parametrize("margin", MARGINS)
def test_all_units_describe_the_same_shift_of_weight(margin: float) -> None:
    """The converted margin of total variation is an amount of weight, and this amount has the first margin."""
    from skbio.stats.composition import ilr  # at the top, each test process would import it: 2 s

    amount = convert_margin(margin, TOTAL_VARIATION, 2)
    shifted = np.array([0.5 + amount, 0.5 - amount])
    assert jensenshannon([0.5, 0.5], shifted, base=2) == pytest.approx(margin)
    assert convert_margin(margin, AITCHISON, 2) == pytest.approx(np.linalg.norm(ilr(shifted)))


def test_a_margin_beyond_all_profiles_is_the_largest_distance_from_uniform_weights() -> None:
    assert convert_margin(0.9, TOTAL_VARIATION, 2) == pytest.approx(0.5)


@pytest.mark.parametrize(("margin", "members"), [(0.0, 3), (0.05, 1)])
def test_no_margin_and_no_choice_have_the_margin_zero(margin: float, members: int) -> None:
    assert all(convert_margin(margin, distance, members) == 0 for distance in DISTANCES)
