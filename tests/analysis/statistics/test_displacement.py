"""Displacements by properties, on Euclidean distances of Gaussian networks whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.contrasts import Contrast, find_contrasts, find_slope_contrasts
from study.analysis.statistics.displacement import (
    correlate_displacements,
    displacement,
    displacement_difference,
    probability_strongest,
    relative_displacement,
    seed_distance,
)
from study.analysis.statistics.intervals import Estimate, Floats, one_sided_p_value
from study.analysis.statistics.moments import CellDistances, Moments, build_moments, measure_contrasts
from tests.analysis.estimates import holds

DRAWS = 300
CONFIDENCE = 0.95
CROSSED = pd.DataFrame(list(product((2, 16), ("sgd", "adamw"))), columns=["batch_size", "solver"])
FACTORS = ("batch_size", "solver")


def _square(points: Floats, missing: Floats | None = None) -> Floats:
    """Squared distances (cell, replicate, cell, replicate, 1) of points (cell, replicate, dimension)."""
    squared = np.sum((points[:, :, None, None] - points[None, None]) ** 2, axis=-1)
    if missing is not None:
        squared[missing], squared[:, :, missing] = np.nan, np.nan
    return np.asarray(squared[..., None])


def _measure(points: Floats, cells: pd.DataFrame, factor: str, missing: Floats | None = None) -> Moments:
    contrasts = _find_contrasts(tuple(map(str, cells)), tuple(cells.itertuples(index=False, name=None)), factor)
    return measure_contrasts(CellDistances(_square(points, missing)), contrasts)


@cache
def _find_contrasts(names: tuple[str, ...], rows: tuple[tuple[Any, ...], ...], factor: str) -> list[Contrast]:
    """`find_contrasts` takes most of the time of a draw."""
    return find_contrasts(pd.DataFrame(list(rows), columns=list(names)), factor)


def _estimate(points: Floats, cells: pd.DataFrame, factor: str, missing: Floats | None = None) -> Estimate:
    return displacement(_measure(points, cells, factor, missing), CONFIDENCE)


def _draw(
    random: np.random.Generator, replicates: int = 4, dimensions: int = 4, *, cells: pd.DataFrame = CROSSED,
    moves: dict[str, float] | None = None, shared: float = 0.5, by_level: float = 0.0, heavy: bool = False,
) -> Floats:  # fmt: skip
    """Points (cell, replicate, dimension). moves: how far the last level of a factor lies from the others.

    shared, by_level: standard deviations of what all networks of a replicate share, and those at one level of B. That
    of each network's own noise is 1. heavy: noise of Student's t with 3 degrees of freedom, of the same variance.
    """

    def noise(*shape: int) -> Floats:
        values = random.standard_t(3, shape) / np.sqrt(3) if heavy else random.standard_normal(shape)
        return np.asarray(values)

    points = noise(len(cells), replicates, dimensions) + shared * noise(1, replicates, dimensions)
    if by_level:
        levels = cells["batch_size"].rank(method="dense").astype(int).to_numpy() - 1
        points += by_level * noise(levels.max() + 1, replicates, dimensions)[levels]
    for number, (factor, move) in enumerate((moves or {}).items()):
        direction = np.zeros(dimensions)
        direction[number % dimensions] = move
        points += np.multiply.outer(cells[factor].eq(cells[factor].iloc[-1]).to_numpy(float), direction)[:, None]
    return points


def _signed_square(value: float | None) -> float:
    return float(np.sign(value or 0.0) * (value or 0.0) ** 2)


def _levels(*levels: object) -> pd.DataFrame:
    return pd.DataFrame({"a": list(levels)})


def test_cells_at_the_same_level_are_no_pair() -> None:
    """They may differ in a setting that is no factor."""
    (contrast,) = find_contrasts(_levels("x", "y", "y"), "a")
    np.testing.assert_allclose(contrast.weights, [[-0.5, 0.25, 0.25], [0.25, -0.25, 0], [0.25, 0, -0.25]])
    points = np.random.default_rng(0).normal(size=(3, 4, 2))
    pairs = [_measure(points[[0, other]], _levels("x", "y"), "a").squared for other in (1, 2)]
    np.testing.assert_allclose(_measure(points, _levels("x", "y", "y"), "a").squared, np.mean(pairs, axis=0))
    numbers = [_measure(points, _levels(*levels), "a").squared for levels in ((2, 16, 16), ("x", "y", "y"))]
    np.testing.assert_allclose(*numbers)


# ---------------------------------------------------------------------------------------------- the estimate


def test_without_noise_it_is_the_distance_of_centres() -> None:
    centres = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [3.0, 5.0]])
    cells = pd.DataFrame(list(product((0, 1), (2, 16))), columns=["a", "b"])
    points = np.repeat(centres[:, None], 3, axis=1)
    moments = _measure(points, cells, "b")
    assert displacement(moments, CONFIDENCE).value == pytest.approx(5)
    assert moments.seeds_change_nothing
    assert _estimate(points, cells, "a").value == pytest.approx(1)


@pytest.mark.parametrize("heavy", [False, True], ids=["Gaussian", "t3"])
@pytest.mark.parametrize("levels", [(2, 16), ("x", "y"), ("x", "y", "z", "u"), (2, 4, 8, 16)], ids=str)
def test_without_an_effect_squares_are_zero_on_average(levels: tuple[object, ...], heavy: bool) -> None:
    random, cells = np.random.default_rng(1), _levels(*levels)
    found = [_estimate(_draw(random, 3, cells=cells, heavy=heavy), cells, "a").value for _ in range(2 * DRAWS)]
    squares = np.array([_signed_square(value) for value in found])
    assert abs(squares.mean()) < 3.5 * squares.std() / np.sqrt(len(squares))
    assert 0.3 < np.mean(squares > 0) < 0.6  # squares are skewed, so fewer than half lie above their mean


@pytest.mark.parametrize("missing", [0.0, 0.25], ids=["complete", "a quarter missing"])
def test_squares_are_unbiased_with_any_networks_missing(missing: float) -> None:
    random, squares = np.random.default_rng(2), []
    for _ in range(2 * DRAWS):
        points = _draw(random, 4, moves={"batch_size": 1.5})
        value = _estimate(points, CROSSED, "batch_size", random.random((4, 4)) < missing).value
        squares += [] if value is None else [_signed_square(value)]
    assert len(squares) > 1.9 * DRAWS
    assert np.mean(squares) == pytest.approx(1.5**2, abs=3.5 * np.std(squares) / np.sqrt(len(squares)))


def test_cells_that_differ_in_their_spread_alone_are_not_apart() -> None:
    random = np.random.default_rng(3)
    spread = np.array([0.2, 2.0])[:, None, None]
    squares = [
        _signed_square(_estimate(spread * random.normal(size=(2, 4, 5)), _levels(2, 16), "a").value)
        for _ in range(DRAWS)
    ]
    assert abs(np.mean(squares)) < 3.5 * np.std(squares) / np.sqrt(DRAWS)


def test_a_shift_that_all_networks_of_a_replicate_share_cancels() -> None:
    """Pairs within a cell and between cells have it alike, so it cancels in the mean: not in every study."""
    random = np.random.default_rng(4)
    squares = [_signed_square(_estimate(_draw(random, shared=2.0), CROSSED, "solver").value) for _ in range(2 * DRAWS)]
    assert abs(np.mean(squares)) < 3.5 * np.std(squares) / np.sqrt(len(squares))


def test_pairs_of_equal_replicates_are_not_used() -> None:
    squared = _square(_draw(np.random.default_rng(5)))
    changed = squared.copy()
    for replicate in range(4):
        changed[:, replicate, :, replicate] += 7.0
    contrasts = find_contrasts(CROSSED, "solver")
    found, expected = (measure_contrasts(CellDistances(each), contrasts) for each in (changed, squared))
    np.testing.assert_allclose(found.squared, expected.squared)


@pytest.mark.parametrize("factor", FACTORS)
def test_the_order_of_cells_and_replicates_does_not_matter(factor: str) -> None:
    random = np.random.default_rng(6)
    points, missing = _draw(random, 5, moves={"batch_size": 1.0}), random.random((4, 5)) < 0.2
    expected = _estimate(points, CROSSED, factor, missing)
    cells, replicates = [2, 0, 3, 1], [4, 1, 0, 3, 2]
    moved = (points[cells][:, replicates], CROSSED.iloc[cells].reset_index(drop=True))
    found = _estimate(*moved, factor, missing[cells][:, replicates])
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_order_and_the_names_of_levels_do_not_matter() -> None:
    points = np.random.default_rng(7).normal(size=(3, 4, 2))
    expected = _measure(points, _levels("x", "y", "z"), "a").squared
    np.testing.assert_allclose(_measure(points[[2, 0, 1]], _levels("x", "y", "z"), "a").squared, expected)
    np.testing.assert_allclose(_measure(points, _levels("z", "u", "a"), "a").squared, expected)


def test_levels_between_the_ends_do_not_matter() -> None:
    points = np.random.default_rng(8).normal(size=(4, 4, 2))
    assert _estimate(points, _levels(2, 4, 8, 16), "a") == _estimate(points[[0, 3]], _levels(2, 16), "a")


def test_the_dispersion_of_names_does_not_depend_on_their_number() -> None:
    """Levels whose centres are drawn from one distribution lie equally far apart, however many there are."""
    random, means, errors = np.random.default_rng(9), [], []
    for names in ("xy", "wxyz", "abcdefgh"):
        squares = np.array([
            _signed_square(_estimate(centres + random.normal(size=(len(names), 3, 5)), _levels(*names), "a").value)
            for centres in random.normal(size=(DRAWS, len(names), 1, 5))
        ])  # fmt: skip
        means.append(squares.mean())
        errors.append(squares.std() / np.sqrt(DRAWS))
    assert means == pytest.approx([10.0] * 3, abs=3.5 * max(errors))  # of five dimensions, each with twice the variance


def test_scaling_all_distances_scales_displacements() -> None:
    points = _draw(np.random.default_rng(10), moves={"batch_size": 3.0})
    once, thrice = (_measure(scale * points, CROSSED, "batch_size") for scale in (1.0, 3.0))
    first, second = (displacement(each, CONFIDENCE) for each in (once, thrice))
    assert (second.value, second.low, second.high) == pytest.approx(
        [3 * (end or 0) for end in (first.value, first.low, first.high)]
    )
    relative = [relative_displacement(each, CONFIDENCE) for each in (once, thrice)]
    assert relative[0].low == pytest.approx(relative[1].low)


def test_the_unit_of_relative_displacements_is_the_distance_between_replicates() -> None:
    points = _draw(np.random.default_rng(11), 200, 1, shared=0.0, moves={"batch_size": 3 * 2**0.5})
    moments = _measure(points, CROSSED, "batch_size")
    assert relative_displacement(moments, CONFIDENCE).value == pytest.approx(3, abs=0.2)
    assert seed_distance(moments, CONFIDENCE).value == pytest.approx(2**0.5, abs=0.1)
    assert holds(relative_displacement(moments, CONFIDENCE), 3)


# ----------------------------------------------------------------------------------------------------- slopes


def test_the_slope_of_a_log_linear_effect_is_that_of_a_doubling() -> None:
    levels = (2, 4, 16, 64)
    points = np.log2(levels)[:, None, None] * np.array([3.0, 4.0]) + np.random.default_rng(0).normal(size=(1, 3, 2))
    cells = _levels(*levels)
    found = displacement(measure_contrasts(CellDistances(_square(points)), find_slope_contrasts(cells, "a")), 0.95)
    assert found.value == pytest.approx(5)


def test_the_square_of_a_slope_is_unbiased() -> None:
    random, cells = np.random.default_rng(12), _levels(2, 4, 8)
    contrasts = find_slope_contrasts(cells, "a")
    rise = 0.7 * np.arange(3)[:, None, None] * np.array([1.0, 0.0])
    squares = [
        _signed_square(displacement(measure_contrasts(
            CellDistances(_square(rise + random.normal(size=(3, 4, 2)))), contrasts), CONFIDENCE).value)
        for _ in range(2 * DRAWS)
    ]  # fmt: skip
    assert np.mean(squares) == pytest.approx(0.49, abs=3.5 * np.std(squares) / np.sqrt(len(squares)))


def test_two_levels_that_are_a_doubling_apart_have_their_displacement_as_slope() -> None:
    points, cells = np.random.default_rng(13).normal(size=(2, 4, 2)), _levels(8, 16)
    slope = measure_contrasts(CellDistances(_square(points)), find_slope_contrasts(cells, "a"))
    np.testing.assert_allclose(slope.squared, _measure(points, cells, "a").squared)


@pytest.mark.parametrize("levels", [("x", "y"), (0, 1), (-1.0, 1.0)], ids=str)
def test_levels_without_a_logarithm_have_no_slope(levels: tuple[object, ...]) -> None:
    assert find_slope_contrasts(_levels(*levels), "a") == []


# ------------------------------------------------------------------------------------------- missing networks


def test_the_square_is_the_difference_of_means_over_pairs_of_different_replicates() -> None:
    random = np.random.default_rng(14)
    points, cells = random.normal(size=(2, 4, 3)), _levels(2, 16)
    missing = np.zeros((2, 4), bool)
    missing[0, 1] = missing[1, 2] = missing[1, 3] = True
    squared = _square(points)[..., 0]

    def mean(first: int, second: int) -> float:
        pairs = [
            squared[first, r, second, s] for r, s in product(range(4), range(4))
            if r != s and not missing[first, r] and not missing[second, s]
        ]  # fmt: skip
        return float(np.mean(pairs))

    expected = mean(0, 1) - (mean(0, 0) + mean(1, 1)) / 2
    assert _measure(points, cells, "a", missing).squared[0, 0] == pytest.approx(expected)
    left_out = missing.copy()
    left_out[:, 0] = True
    without = _measure(points, cells, "a", left_out).squared[0, 0]
    assert _measure(points, cells, "a", missing).squared[1, 0] == pytest.approx(without)


def test_a_cell_without_a_network_leaves_its_contrast_out() -> None:
    points, missing = _draw(np.random.default_rng(15)), np.zeros((4, 4), bool)
    missing[0] = True  # B = 2, sgd
    moments = _measure(points, CROSSED, "batch_size", missing)
    assert (moments.n_contrasts, moments.n_planned, moments.is_complete) == (1, 2, False)
    alone = _measure(points[[1, 3]], CROSSED.iloc[[1, 3]].reset_index(drop=True), "batch_size")
    np.testing.assert_allclose(moments.squared, alone.squared)


def test_a_cell_with_a_single_network_takes_the_noise_of_the_others() -> None:
    points, missing = _draw(np.random.default_rng(16)), np.zeros((4, 4), bool)
    missing[0, 1:] = True
    found = _measure(points, CROSSED, "batch_size", missing)
    assert found.is_complete
    assert np.isfinite(found.squared[0]).all()
    assert displacement(found, CONFIDENCE).low is None  # without that network there is no estimate


def test_replicates_without_any_network_are_not_counted() -> None:
    points = _draw(np.random.default_rng(17), 5, moves={"batch_size": 2.0})
    missing = np.zeros((4, 5), bool)
    missing[:, [1, 4]] = True
    found, expected = _estimate(points, CROSSED, "solver", missing), _estimate(points[:, [0, 2, 3]], CROSSED, "solver")
    assert (found.n, found.freedom) == (3, 2)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_replicates_of_other_cells_are_not_counted() -> None:
    cells = pd.DataFrame({"a": [2, 16, 2], "b": ["x", "x", "y"]})
    missing = np.zeros((3, 6), bool)
    missing[:2, 3:] = True  # the contrast of a has three replicates
    assert _estimate(np.random.default_rng(18).normal(size=(3, 6, 2)), cells, "a", missing).n == 3


def test_no_network_and_no_contrast_have_no_value() -> None:
    points = _draw(np.random.default_rng(19))
    nothing = _measure(points, CROSSED, "solver", np.ones((4, 4), bool))
    assert displacement(nothing, CONFIDENCE).value is None
    assert (nothing.n, nothing.n_contrasts, nothing.n_planned, nothing.seeds_change_nothing) == (0, 0, 2, False)
    assert displacement(measure_contrasts(CellDistances(_square(points)), []), CONFIDENCE) == Estimate()


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_give_no_interval(replicates: int) -> None:
    moments = _measure(_draw(np.random.default_rng(20), replicates, moves={"batch_size": 9.0}), CROSSED, "batch_size")
    estimates = [find(moments, CONFIDENCE) for find in (displacement, relative_displacement, seed_distance)]
    assert all(each.low is None and each.bounds is None for each in estimates)
    assert [each.value is None for each in estimates] == [replicates == 1] * 3


# ---------------------------------------------------------------------------------- seeds that change nothing


@pytest.mark.parametrize("move", [0.0, 0.3])
def test_without_any_spread_the_interval_is_the_value(move: float) -> None:
    points = np.zeros((4, 3, 2)) + move * CROSSED["batch_size"].eq(16).to_numpy()[:, None, None]
    moments = _measure(points, CROSSED, "batch_size")
    found = displacement(moments, CONFIDENCE)
    assert moments.seeds_change_nothing
    assert (found.low, found.value, found.high) == pytest.approx((move * 2**0.5,) * 3)
    assert (found.above(0.05), found.below(0.05)) == (move > 0, move == 0)
    assert one_sided_p_value(found, 0.05, CONFIDENCE) == (0.0 if move else 1.0)
    assert relative_displacement(moments, CONFIDENCE).value is None


def test_one_replicate_that_differs_ends_the_certainty() -> None:
    points = np.zeros((4, 4, 2)) + CROSSED["batch_size"].eq(16).to_numpy()[:, None, None]
    points[0, 0] = 1e-3
    moments = _measure(points, CROSSED, "batch_size")
    assert not moments.seeds_change_nothing
    assert (moments.seeds >= 0).all()
    found = displacement(moments, CONFIDENCE)
    assert found.low is not None
    assert found.low < found.high  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------- coverage


def _count(draw: Callable[[np.random.Generator], Estimate], truth: float) -> tuple[float, float, float]:
    """The shares of intervals that cover the truth, lie above it, and lie below it."""
    random = np.random.default_rng(21)
    found = [draw(random) for _ in range(DRAWS)]
    assert all(each.low is not None for each in found)
    counts = [sum(marks) / DRAWS for marks in zip(
        *((holds(each, truth), each.above(truth), each.below(truth)) for each in found), strict=True
    )]  # fmt: skip
    return counts[0], counts[1], counts[2]


@pytest.mark.parametrize("heavy", [False, True], ids=["Gaussian", "t3"])
@pytest.mark.parametrize("move", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("replicates", "dimensions"), [(3, 1), (3, 8), (6, 3)])
def test_intervals_cover_the_truth(replicates: int, dimensions: int, move: float, heavy: bool) -> None:
    """Measured with 400 draws: 93 to 99.5 %."""

    def draw(random: np.random.Generator) -> Estimate:
        points = _draw(random, replicates, dimensions, moves={"batch_size": move}, heavy=heavy)
        return _estimate(points, CROSSED, "batch_size")

    covered, above, below = _count(draw, move)
    assert covered >= 0.91
    assert above <= 0.05  # a false "moves the choice"; of 2.5 %, three standard errors above it
    assert below <= 0.09


@pytest.mark.parametrize("move", [0.0, 2.0])
def test_intervals_cover_where_seeds_move_all_networks_at_a_level_alike(move: float) -> None:
    def draw(random: np.random.Generator) -> Estimate:
        points = _draw(random, 4, 3, moves={"batch_size": move}, by_level=1.0)
        return _estimate(points, CROSSED, "batch_size")

    covered, above, _ = _count(draw, move)
    assert covered >= 0.91
    assert above <= 0.05


@pytest.mark.parametrize("move", [0.0, 2.0])
def test_intervals_cover_where_networks_are_missing(move: float) -> None:
    """Two of the six replicates lack one cell, one lacks two."""
    missing = np.zeros((4, 6), bool)
    missing[[0, 2, 1, 3], [0, 1, 2, 2]] = True

    def draw(random: np.random.Generator) -> Estimate:
        points = _draw(random, 6, 3, moves={"batch_size": move}, by_level=0.5)
        return _estimate(points, CROSSED, "batch_size", missing)

    covered, above, _ = _count(draw, move)
    assert covered >= 0.91
    assert above <= 0.05


@pytest.mark.parametrize("moves", [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (3.0, 1.0)], ids=str)
@pytest.mark.parametrize("replicates", [3, 6])
def test_intervals_of_differences_cover_the_truth(replicates: int, moves: tuple[float, float]) -> None:
    def draw(random: np.random.Generator) -> Estimate:
        points = _draw(random, replicates, 3, moves=dict(zip(FACTORS, moves, strict=True)), by_level=0.5)
        return displacement_difference(*(_estimate(points, CROSSED, name) for name in FACTORS), CONFIDENCE)

    covered, above, below = _count(draw, moves[0] - moves[1])
    assert covered >= 0.91
    assert max(above, below) <= 0.06


def test_intervals_of_differences_cover_where_noise_moves_two_factors_against_each_other() -> None:
    """The only noisy cell has one factor high and the other low. Errors that are combined as if they were independent
    gave intervals of 95 % that held the truth in 86 %."""
    high = np.array([[0], [0], [1], [1]]) + np.array([[0], [1], [0], [1]])
    spread = np.array([0.1, 0.1, 1.0, 0.1])[:, None, None]

    def draw(random: np.random.Generator) -> Estimate:
        points = 4.0 * high[:, None] + spread * random.standard_normal((4, 8, 1))
        moments = [_measure(points, CROSSED, name) for name in FACTORS]
        parts = [displacement(each, CONFIDENCE) for each in moments]
        return displacement_difference(*parts, CONFIDENCE, correlate_displacements(*moments))

    assert _count(draw, 0.0)[0] >= 0.92


# ------------------------------------------------------------------------------------------------ differences


@pytest.mark.parametrize("left", [2, 3])
def test_intervals_cover_where_the_noisiest_cell_has_few_networks(left: int) -> None:
    missing = np.zeros((len(CROSSED), 8), dtype=bool)
    missing[0, left:] = True
    cells = pd.DataFrame({"batch_size": [2, 16]})
    missing = missing[: len(cells)]

    def draw(random: np.random.Generator) -> Estimate:
        points = np.array([4.0, 1.0])[:, None, None] * random.standard_normal((len(cells), 8, 1))
        return _estimate(points, cells, "batch_size", missing)

    covers, _, below = _count(draw, 0.0)
    assert covers >= 0.93
    assert below <= 0.05


def test_degrees_of_freedom_are_those_of_the_cell_with_the_fewest_networks() -> None:
    random = np.random.default_rng(4)
    missing = np.zeros((len(CROSSED), 5), dtype=bool)
    assert _measure(_draw(random, 5), CROSSED, "batch_size", missing).freedom == 4
    missing[0, 2:] = True
    assert _estimate(_draw(random, 5), CROSSED, "batch_size", missing).freedom == 1
    missing[0, 1:] = True
    assert _estimate(_draw(random, 5), CROSSED, "batch_size", missing).low is None


def _pair(seed: int, replicates: int = 4) -> tuple[Estimate, Estimate]:
    points = _draw(np.random.default_rng(seed), replicates, moves={"batch_size": 2.0, "solver": 1.0})
    first, second = (_estimate(points, CROSSED, name) for name in FACTORS)
    return first, second


def test_a_difference_is_that_of_the_values_and_changes_sign_with_the_order() -> None:
    first, second = _pair(0)
    found, reverse = (displacement_difference(*pair, CONFIDENCE) for pair in ((first, second), (second, first)))
    assert found.value == pytest.approx((first.value or 0) - (second.value or 0))
    assert (reverse.low, reverse.high) == pytest.approx((-(found.high or 0), -(found.low or 0)))


def test_a_difference_from_a_certain_value_is_a_shift() -> None:
    first, _ = _pair(1)
    known = Estimate(value=0.5, low=0.5, high=0.5, n=4, freedom=3)
    found = displacement_difference(first, known, CONFIDENCE)
    assert (found.low, found.high) == pytest.approx(((first.low or 0) - 0.5, (first.high or 0) - 0.5))


def test_the_interval_of_a_difference_is_wider_at_a_higher_confidence() -> None:
    found = displacement_difference(*_pair(2), CONFIDENCE)
    assert found.bounds is not None
    ends = np.array([found.bounds(confidence) for confidence in (0.5, 0.95, 0.99)])
    assert (np.diff(ends, axis=0) * [-1, 1] > 0).all()
    assert ends[1] == pytest.approx((found.low, found.high))


def test_a_difference_without_an_interval_or_without_a_value() -> None:
    assert displacement_difference(*_pair(3, replicates=2), CONFIDENCE).low is None
    assert displacement_difference(*_pair(3, replicates=2), CONFIDENCE).value is not None
    assert displacement_difference(_pair(3)[0], Estimate(n=2), CONFIDENCE) == Estimate(n=2)


# -------------------------------------------------------------------------------------------- strongest factor


def _strongest(points: Floats, missing: Floats | None = None, factors: tuple[str, ...] = FACTORS) -> dict[str, float]:
    squared = _square(points, missing)
    contrasts: dict[str, list[Contrast]] = {name: find_contrasts(CROSSED, name) for name in factors}
    return probability_strongest(CellDistances(squared), contrasts)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_probabilities_of_being_the_strongest_sum_to_one(missing: float) -> None:
    random = np.random.default_rng(22)
    found = _strongest(_draw(random, 6), random.random((4, 6)) < missing)
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == set(FACTORS)


def test_a_factor_that_moves_much_further_is_the_strongest() -> None:
    found = _strongest(_draw(np.random.default_rng(23), 5, moves={"solver": 5.0, "batch_size": 1.0}))
    assert found["solver"] > 0.99


def test_factors_that_move_equally_share() -> None:
    assert _strongest(np.zeros((4, 4, 2))) == {"batch_size": 0.5, "solver": 0.5}
    random = np.random.default_rng(24)
    mean = np.mean([_strongest(_draw(random, 4))["solver"] for _ in range(60)])
    assert mean == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_say_nothing_of_the_strongest(replicates: int) -> None:
    points, missing = _draw(np.random.default_rng(25), 4), np.zeros((4, 4), bool)
    missing[:, replicates:] = True
    assert _strongest(points[:, :replicates]) == _strongest(points, missing) == {}


def test_a_factor_without_results_is_not_among_the_strongest() -> None:
    missing = np.zeros((4, 4), bool)
    missing[[0, 3]] = True  # no two cells that differ in one factor alone have results
    assert _strongest(_draw(np.random.default_rng(26)), missing) == {}


# ------------------------------------------------------------------------------------- distances by replicate


def test_moments_from_distances_by_replicate() -> None:
    random = np.random.default_rng(27)
    between, within = random.random((2, 4, 4, 1))
    found = build_moments(between, within)
    apart = ~np.eye(4, dtype=bool)
    assert found.squared[0, 0] == pytest.approx((between - within)[apart].mean())
    assert found.seeds[2, 0] == pytest.approx(np.delete(np.delete(within, 1, 0), 1, 1)[~np.eye(3, dtype=bool)].mean())


def test_replicates_without_a_pair_are_not_counted_there_either() -> None:
    between, within = np.random.default_rng(28).random((2, 5, 5, 1))
    expected = displacement(build_moments(between[:3, :3], within[:3, :3]), CONFIDENCE)
    for table in (between, within):
        table[3:], table[:, 3:] = np.nan, np.nan
    found = displacement(build_moments(between, within), CONFIDENCE)
    assert (found.n, found.low, found.high) == pytest.approx((3, expected.low, expected.high))
