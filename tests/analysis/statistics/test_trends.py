from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.analysis.statistics.intervals import Floats, mean_p_value, replicate_interval, select_block
from study.analysis.statistics.trends import axis_slopes, batch_trends, leading_axis, page_p_value, rank_trends
from study.plan.loading import load_study
from study.plan.trials import plan_trials

DRAWS = 200
LEVELS = np.array([2.0, 4.0, 8.0, 16.0])


# ------------------------------------------------------------------------------------- inside a network


def _switch(weights: Floats, places: Any) -> pd.DataFrame:
    """The weights (network, layer) of one normalizer and statistic, as records have them."""
    rows = [
        (f"n{network}", "mean", "bn", place, weight)
        for network, layers in enumerate(weights)
        for place, weight in zip(places, layers, strict=True)
    ]
    return pd.DataFrame(rows, columns=["key", "statistic", "normalizer", "depth_fraction", "weight"])


def test_a_rank_trend_is_spearmans() -> None:
    random = np.random.default_rng(0)
    places, weights = [0.0, 0.2, 0.2, 0.5, 0.8, 1.0], random.integers(0, 4, (5, 6)) / 4
    expected = [stats.spearmanr(places, row).statistic for row in weights]
    found = rank_trends(_switch(weights, places), "depth_fraction")["mean", "bn"]
    assert found.tolist() == pytest.approx(expected)


def test_weights_that_are_the_same_in_every_layer_have_no_trend() -> None:
    found = rank_trends(_switch(np.zeros((2, 5)), range(5)), "depth_fraction")
    assert found.to_numpy().ravel().tolist() == [0.0, 0.0]


def test_too_few_layers_with_a_place_have_no_number() -> None:
    two_known = _switch(np.random.default_rng(0).random((2, 5)), [0.0, None, None, 1.0, None])
    at_one_place = _switch(np.random.default_rng(0).random((2, 5)), [0.5] * 5)
    assert rank_trends(two_known, "depth_fraction").empty
    assert rank_trends(at_one_place, "depth_fraction").empty


@pytest.mark.parametrize(("slope", "low", "high"), [(0.0, 0.01, 0.09), (0.4, 0.95, 1.0)], ids=["flat", "planted"])
def test_trends_with_depth_are_found_where_they_are(slope: float, low: float, high: float) -> None:
    random = np.random.default_rng(1)
    weights = slope * np.linspace(0, 1, 9) + random.normal(0, 0.1, (DRAWS * 4, 9))
    trends = rank_trends(_switch(weights, range(9)), "depth_fraction")["mean", "bn"]
    by_key = trends.loc[[f"n{number}" for number in range(DRAWS * 4)]].to_numpy().reshape(DRAWS, 4)
    p_values = np.array([mean_p_value(replicates) for replicates in by_key], dtype=float)
    assert low <= np.mean(p_values < 0.05) <= high


# ------------------------------------------------------------------------------------------------ with B


def test_without_a_trend_p_values_are_uniform() -> None:
    random = np.random.default_rng(2)
    p_values = np.array([page_p_value(random.normal(size=(5, 4)) + random.normal(size=(5, 1))) for _ in range(DRAWS)])
    assert 0.01 <= np.mean(p_values < 0.05) <= 0.09
    # A doubled p of a discrete statistic lies above a uniform one, by its steps.
    assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 0.01
    assert 0.4 <= np.mean(p_values < 0.5) <= 0.6


def test_pages_test_goes_both_ways() -> None:
    table = np.random.default_rng(3).normal(0, 0.3, (4, 4)) + np.arange(4)
    assert page_p_value(table) == page_p_value(-table) == page_p_value(table[:, ::-1])
    assert page_p_value(table) == pytest.approx(2 * stats.page_trend_test(table).pvalue)


def test_a_planted_trend_with_b_is_found_beside_flat_weights() -> None:
    random = np.random.default_rng(4)
    values = random.normal(0, 0.02, (5, 4, 3)) + random.normal(0, 0.1, (5, 1, 3))
    values[:, :, 1] += 0.05 * np.log2(LEVELS)
    slopes, p_values = batch_trends(values, LEVELS)
    assert slopes[:, 1].mean() == pytest.approx(0.05, abs=0.01)
    assert [p is not None and p < 0.05 for p in p_values] == [False, True, False]


def test_two_levels_are_a_paired_t_test() -> None:
    values = np.random.default_rng(5).normal(size=(6, 2, 1))
    slopes, p_values = batch_trends(values, np.array([2.0, 16.0]))
    assert slopes[:, 0] == pytest.approx((values[:, 1, 0] - values[:, 0, 0]) / 3)  # three doublings
    assert p_values == [pytest.approx(stats.ttest_rel(values[:, 1, 0], values[:, 0, 0]).pvalue)]


@pytest.mark.parametrize("levels", [LEVELS, LEVELS[:2]], ids=["four levels", "two levels"])
def test_one_replicate_has_no_p_value(levels: Floats) -> None:
    _, p_values = batch_trends(np.random.default_rng(6).normal(size=(1, len(levels), 2)), levels)
    assert p_values == [None, None]


def test_a_weight_of_exactly_zero_has_no_trend() -> None:
    slopes, p_values = batch_trends(np.zeros((4, 4, 1)), LEVELS)
    assert not slopes.any()
    assert p_values == [1.0]


# ------------------------------------------------------------------------------------------ B and G x B


def _cells(batches: Any, gradients: Any, offsets: Any = (0,)) -> pd.DataFrame:
    rows = [dict(zip(("statistics_batch", "gradient_batch", "depth"), row, strict=True))
            for row in product(batches, gradients, offsets)]  # fmt: skip
    return pd.DataFrame(rows, dtype=object)


def _world(cells: pd.DataFrame, b: float, gradient: float, random: np.random.Generator) -> Floats:
    """BN shares (cell, replicate) that rise with log2 B and log2 G x B, and differ between depths."""
    truth = b * np.log2(cells["statistics_batch"].astype(float)) + gradient * np.log2(
        cells["gradient_batch"].astype(float)
    )
    noise = random.normal(0, 0.02, (len(cells), 5)) + random.normal(0, 0.1, 5)
    return np.asarray((truth + 0.3 * cells["depth"].astype(float)).to_numpy()[:, None] + noise)


@pytest.mark.parametrize(("b", "gradient", "leader"), [(0.03, 0.0, "B"), (0.0, 0.03, "G x B"), (0.03, -0.01, "B")])
def test_slopes_cover_the_truth_and_the_right_axis_leads(b: float, gradient: float, leader: str) -> None:
    random, cells = np.random.default_rng(7), _cells((2, 4, 8, 16), (16, 32, 64))
    covered, leaders = np.zeros(2), []
    for draw in range(DRAWS):
        slopes = axis_slopes(cells, [], _world(cells, b, gradient, random))
        assert slopes is not None
        covered += [
            replicate_interval(values, 0.95).contains(t) for values, t in zip(slopes, (b, gradient), strict=True)
        ]
        if draw < DRAWS // 5:
            leaders.append(leading_axis({"B": slopes[0], "G x B": slopes[1]}, 0.95))
    assert np.all((covered / DRAWS >= 0.91) & (covered / DRAWS <= 0.99))
    assert leaders.count(leader) >= 0.8 * len(leaders)  # the others: not told
    assert set(leaders) <= {leader, None}


@pytest.mark.parametrize("slope", [0.0, 0.03], ids=["neither", "both alike"])
def test_neither_axis_leads_where_both_are_alike(slope: float) -> None:
    random, cells = np.random.default_rng(8), _cells((2, 4, 8, 16), (16, 32, 64))
    found = [axis_slopes(cells, [], _world(cells, slope, slope, random)) for _ in range(100)]
    led = [leading_axis({"B": slopes[0], "G x B": slopes[1]}, 0.95) for slopes in found if slopes is not None]
    assert sum(leader is not None for leader in led) <= 0.09 * len(led)


def test_cells_are_compared_where_they_agree_in_other_factors() -> None:
    # The larger depth lies at larger B alone: without its groups, its 0.3 would be taken for B's.
    cells = pd.concat([_cells((2, 4), (16, 32), (0,)), _cells((8, 16), (16, 32), (1,))], ignore_index=True)
    values = _world(cells, 0.05, 0.0, np.random.default_rng(9))
    within, pooled = axis_slopes(cells, ["depth"], values), axis_slopes(cells, [], values)
    assert within is not None
    assert pooled is not None
    assert replicate_interval(within[0], 0.95).contains(0.05)
    assert pooled[0].mean() > 0.1


_G_IS_8 = pd.DataFrame({"statistics_batch": [2, 8], "gradient_batch": [16, 64]})


@pytest.mark.parametrize(
    "cells",
    [_cells((2, 4, 8), (16,)), _cells((2,), (16, 32)), _G_IS_8],
    ids=["G x B is fixed", "B is fixed", "G is fixed"],
)
def test_axes_that_do_not_vary_apart_are_not_told_apart(cells: pd.DataFrame) -> None:
    assert axis_slopes(cells, [], np.random.default_rng(0).random((len(cells), 4))) is None


def test_the_study_of_both_axes_changes_nothing_else() -> None:
    plan = plan_trials(load_study("batch_axes"))
    assert len({(trial.steps, trial.config.base_learning_rate) for trial in plan}) == 1
    axes = np.log2([(trial.statistics_batch, trial.gradient_batch) for trial in plan])
    assert np.corrcoef(axes.T)[0, 1] == pytest.approx(0)


# -------------------------------------------------------------------------------------------- statistics


def test_a_block_holds_cells_that_every_replicate_has() -> None:
    rows = [(f"c{cell}-r{replicate}", f"c{cell}", replicate, "done") for replicate, cell in product(range(3), range(4))]
    trials = pd.DataFrame(rows, columns=["key", "trial_id", "replicate", "state"], index=range(100, 112))
    trials.loc[101, "state"] = "diverged"  # cell 1 in replicate 0
    numbers = pd.DataFrame({"value": np.arange(12.0)}, index=trials["key"]).drop("c3-r2")
    block = select_block(trials, numbers)
    assert block.cells["trial_id"].tolist() == ["c0", "c2"]
    assert block.trials.tolist() == [[100, 104, 108], [102, 106, 110]]
    assert block.values[:, :, 0].tolist() == [[0, 4, 8], [2, 6, 10]]
