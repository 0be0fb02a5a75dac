"""Means of cells with unequal numbers of replicates: against Student's t, a mixed model, and by coverage."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.analysis.statistics.cell_means import (
    adjust_replicates,
    compute_p_value,
    compute_standard_error,
    estimate_contrast,
    estimate_mean_of_cells,
    find_interaction,
)
from study.analysis.statistics.intervals import Floats
from tests.analysis.estimates import holds

DRAWS = 300


def _draw(seed: int, cells: int, replicates: int, shared: float = 0.5, spread: Floats | None = None) -> Floats:
    """Cells of different means whose replicates share a part of their variance."""
    random = np.random.default_rng([5, seed])
    noise = np.sqrt(shared) * random.normal(size=replicates)
    noise = noise + np.sqrt(1 - shared) * random.normal(size=(cells, replicates))
    scale = np.ones(cells) if spread is None else spread
    grid: Floats = np.linspace(-2, 2, cells)[:, None] + scale[:, None] * noise
    return grid


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000))
def test_without_missing_results_it_is_students_t_over_replicate_means(cells: int, replicates: int, seed: int) -> None:
    grid = _draw(seed, cells, replicates)
    found, means = estimate_mean_of_cells(grid, 0.9), grid.mean(axis=0)
    test = stats.ttest_1samp(means, 0)
    expected = (means.mean(), *test.confidence_interval(0.9), replicates - 1)
    assert (found.value, found.low, found.high, found.freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.n == replicates
    assert adjust_replicates(grid) == pytest.approx(means)
    assert compute_p_value(found, 0.9) == pytest.approx(test.pvalue, rel=1e-6)


def test_without_missing_results_a_contrast_is_a_paired_t_test() -> None:
    grid = _draw(1, 3, 6)
    found = estimate_contrast(grid, [1, 0, -1], 0.95)
    test = stats.ttest_rel(grid[0], grid[2])
    assert (found.low, found.high) == pytest.approx(test.confidence_interval(0.95))


@pytest.mark.parametrize("missing", [[], [(0, 0)], [(0, 1), (2, 3), (2, 4)]])
def test_it_agrees_with_a_mixed_model(missing: list[tuple[int, int]]) -> None:
    """Reference: scores with cells fixed, and replicate and replicate x norm random (REML).

    A model of scores with a random norm effect of a replicate and independent residuals is what the mean of paired
    differences estimates. With missing pairs, the weights of the two differ a little.
    """
    errors, differences = [], []
    for seed in range(12):
        random = np.random.default_rng([9, seed])
        cells, replicates = 4, 8
        seeds, own = random.normal(0, 1, replicates), random.normal(0, 0.7, replicates)
        rows = [
            (f"c{c}", r, norm, c + 0.5 * norm * (c + 1) + seeds[r] + own[r] * norm + random.normal(0, 0.5))
            for c in range(cells) for r in range(replicates) for norm in (0, 1) if (c, r) not in missing
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=["cell", "replicate", "norm", "score"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = smf.mixedlm(
                "score ~ 0 + cell + cell:norm", table, groups="replicate", re_formula="1 + norm"
            ).fit()  # fmt: skip
        names = [name for name in fitted.fe_params.index if name.endswith(":norm")]
        weights = np.array([name in names for name in fitted.fe_params.index]) / len(names)
        value = float(weights @ fitted.fe_params)
        error = float(
            np.sqrt(weights @ fitted.cov_params().loc[fitted.fe_params.index, fitted.fe_params.index] @ weights)
        )
        wide = table.pivot(index="cell", columns=["replicate", "norm"], values="score")
        grid = (wide.xs(1, axis=1, level="norm") - wide.xs(0, axis=1, level="norm")).to_numpy()
        found = estimate_mean_of_cells(grid, 0.95)
        own_error = compute_standard_error(found, 0.95)
        assert found.value is not None
        assert own_error is not None
        differences.append((found.value - value) / error)
        errors.append(own_error / error)
    assert np.abs(differences).max() < (1e-4 if not missing else 0.5)
    assert 0.9 < np.exp(np.mean(np.log(errors))) < 1.15


@pytest.mark.parametrize("spread", [np.ones(4), np.array([5.0, 1, 1, 1])])
@pytest.mark.parametrize("gone", ["nothing", "a run of the first cell", "a third of the runs"])
def test_intervals_cover(spread: Floats, gone: str) -> None:
    found = []
    for seed in range(DRAWS):
        grid = _draw(seed, 4, 5, spread=spread)
        if gone == "a run of the first cell":
            grid[0, 0] = np.nan
        if gone == "a third of the runs":
            random = np.random.default_rng(seed)
            lost = random.random(grid.shape) < 1 / 3
            lost[np.arange(4), random.integers(0, 5, 4)] = False
            grid[lost] = np.nan
        found.append(estimate_mean_of_cells(grid, 0.95))
    with_interval = [each for each in found if each.low is not None]  # there is none where a cell has one result
    assert len(with_interval) > DRAWS / 2
    assert 0.92 <= np.mean([holds(each, 0) for each in with_interval]) <= 1


@pytest.mark.parametrize("noise", [1, 1 / 3, 1 / 10])
@pytest.mark.parametrize(("replicates", "left"), [(3, 2), (5, 2), (8, 2), (8, 3)])
def test_intervals_cover_where_the_noisiest_cell_has_few_results(replicates: int, left: int, noise: float) -> None:
    """With Satterthwaite's degrees of freedom, 7 to 12 % of these intervals missed."""
    random, covered = np.random.default_rng([replicates, left]), 0
    for _ in range(2 * DRAWS):
        grid = np.array([[1.0], [noise], [noise], [noise]]) * random.standard_normal((4, replicates))
        grid[0, left:] = np.nan
        covered += holds(estimate_mean_of_cells(grid, 0.95), 0)
    assert covered / (2 * DRAWS) >= 0.93


def test_a_missing_result_does_not_move_the_question() -> None:
    """The mean over cells stays that of all cells; dropping the cell would turn its sign."""
    grid = np.array([[-0.06] * 4, [0.012] * 4, [0.012] * 4, [0.012] * 4, [0.012] * 4])
    grid += 0.001 * np.random.default_rng(0).standard_normal(grid.shape)
    complete = estimate_mean_of_cells(grid, 0.95)
    grid[0, 0] = np.nan
    found = estimate_mean_of_cells(grid, 0.95)
    assert found.value == pytest.approx(complete.value, abs=1e-3)
    assert found.below(0)


def test_a_cell_with_one_result_has_no_interval() -> None:
    """Its spread is unknown, and cannot be borrowed: cells differ in their spread."""
    grid = _draw(3, 4, 5)
    grid[0, 1:] = np.nan
    found = estimate_mean_of_cells(grid, 0.95)
    assert found.value is not None
    assert found.low is None
    assert estimate_contrast(grid, [0.0, 0.5, 0.5, 0.0], 0.95).low is not None


def test_no_interval_without_spread() -> None:
    assert estimate_mean_of_cells(np.array([[0.1, 0.1], [0.3, 0.3]]), 0.95).low is None
    assert estimate_mean_of_cells(np.array([[0.1, np.nan], [0.3, np.nan]]), 0.95).low is None
    assert estimate_mean_of_cells(np.empty((0, 0)), 0.95).value is None
    with pytest.raises(ValueError, match="at least 1"):
        estimate_mean_of_cells(np.array([[0.1, 0.2], [np.nan, np.nan]]), 0.95)


def test_the_interaction_test_errs_rarely_where_spreads_differ() -> None:
    spread = np.array([4.0, 1, 1, 0.5])
    found = []
    for seed in range(DRAWS):
        grid = _draw(seed, 4, 5, spread=spread) - np.linspace(-2, 2, 4)[:, None]
        interaction = find_interaction(grid, 0.95)
        found.append(interaction is not None and interaction.p_value < 0.05)
    assert np.mean(found) <= 0.07


def test_the_interaction_test_finds_the_cell_that_differs() -> None:
    grid = _draw(0, 4, 6) - np.linspace(-2, 2, 4)[:, None]
    grid[2] += 6
    found = find_interaction(grid, 0.95)
    assert found is not None
    assert found.cell == 2
    assert found.p_value < 0.05
    assert found.estimate.above(0)
    assert find_interaction(grid[:1], 0.95) is None


def test_the_cell_that_differs_most_is_named_however_small_the_spread_of_others() -> None:
    """By p values, an even cell beside an odd one would be named as the one that is unlike the others."""
    grid = np.array([0.01, 0.001, 0.001, 0.001])[:, None] * _draw(5, 4, 6)
    grid[0] += 0.8
    found = find_interaction(grid, 0.95)
    assert found is not None
    assert found.cell == 0


def test_two_cells_are_one_interaction() -> None:
    grid = _draw(4, 2, 5)
    found = find_interaction(grid, 0.95)
    assert found is not None
    assert found.p_value == pytest.approx(stats.ttest_1samp(grid[0] - grid[1], 0).pvalue)
