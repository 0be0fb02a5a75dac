from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.analysis.statistics.cell_means import estimate_contrast
from study.analysis.statistics.intervals import Floats, build_grid
from study.analysis.statistics.trends import leading_axis, rank_trends, slope_weights
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from tests.analysis.estimates import estimate_mean, holds

DRAWS = 200
LEVELS = np.array([2.0, 4.0, 8.0, 16.0])
AXES = ["statistics_batch", "gradient_batch"]


# ------------------------------------------------------------------------------------- inside a network


SMALL_RESNET = ["stem", "norm1", "norm2", *["norm1", "norm2", "shortcut"] * 2]


def _switch(weights: Floats, positions: Any, places: Any = "norm1") -> pd.DataFrame:
    """The weights (network, layer) of one normalizer and statistic, as records have them."""
    rows = [
        (f"n{network}", "mean", "bn", position, weight)
        for network, layers in enumerate(weights)
        for position, weight in zip(positions, layers, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["key", "statistic", "normalizer", "depth_fraction", "weight"])
    return table.assign(place=places if isinstance(places, str) else places * len(weights))


def test_among_layers_of_one_place_a_rank_trend_is_spearmans() -> None:
    random = np.random.default_rng(0)
    positions, weights = [0.0, 0.2, 0.2, 0.5, 0.8, 1.0], random.integers(0, 4, (5, 6)) / 4
    expected = [stats.spearmanr(positions, row).statistic for row in weights]
    found = rank_trends(_switch(weights, positions), "depth_fraction")["mean", "bn"]
    assert found.tolist() == pytest.approx(expected)


def test_a_rank_trend_is_the_partial_correlation_of_ranks_given_indicators_of_place() -> None:
    random = np.random.default_rng(1)
    weights, positions = random.integers(0, 6, (20, 9)) / 6, [0.0, 0.1, 0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0]
    indicators = pd.get_dummies(SMALL_RESNET).to_numpy(dtype=float)

    def remainder(values: Any) -> Floats:
        ranks = stats.rankdata(values)
        return np.asarray(ranks - indicators @ np.linalg.lstsq(indicators, ranks, rcond=None)[0])

    expected = {f"n{number}": np.corrcoef(remainder(positions), remainder(row))[0, 1]
                for number, row in enumerate(weights)}  # fmt: skip
    found = rank_trends(_switch(weights, positions, SMALL_RESNET), "depth_fraction")["mean", "bn"]
    assert found.to_dict() == pytest.approx(expected)


def test_weights_that_follow_the_place_alone_have_no_trend_with_depth() -> None:
    """The shortcuts of a small ResNet lie deep in the network, so Spearman's correlation finds a trend."""
    random = np.random.default_rng(2)
    pattern = np.array([{"stem": 0.1, "norm1": 0.5, "norm2": 0.6, "shortcut": 0.8}[place] for place in SMALL_RESNET])
    weights = pattern + random.normal(0, 0.02, (DRAWS * 4, 9))
    plain, given_place = (
        rank_trends(_switch(weights, range(9), places), "depth_fraction")["mean", "bn"]
        for places in ("norm1", SMALL_RESNET)
    )

    def count_false(trends: pd.Series) -> float:
        by_key = trends.loc[[f"n{number}" for number in range(DRAWS * 4)]].to_numpy().reshape(DRAWS, 4)
        return float(np.mean([stats.ttest_1samp(replicates, 0).pvalue < 0.05 for replicates in by_key]))

    assert count_false(plain) > 0.95
    assert count_false(given_place) <= 0.09
    exact = rank_trends(_switch(np.tile(pattern, (2, 1)), range(9), SMALL_RESNET), "depth_fraction")
    assert exact.to_numpy().ravel().tolist() == [0.0, 0.0]


def test_networks_in_which_depth_follows_from_place_have_no_trend() -> None:
    weights = np.random.default_rng(3).random((2, 4))
    each_its_own = _switch(weights, range(4), ["stem", "norm1", "norm2", "shortcut"])
    two_depths = _switch(weights, [0, 0, 1, 1], ["norm1", "norm1", "norm2", "norm2"])
    one_pair = _switch(weights, range(4), ["stem", "norm1", "norm2", "norm1"])  # their correlation is always 1 or -1
    for switch in (each_its_own, two_depths, one_pair):
        assert rank_trends(switch, "depth_fraction").empty
    both = pd.concat([each_its_own, _switch(weights, range(4)).replace({"key": {"n0": "n2", "n1": "n3"}})])
    assert list(rank_trends(both, "depth_fraction").index) == ["n2", "n3"]


def test_weights_that_are_the_same_in_every_layer_have_no_trend() -> None:
    found = rank_trends(_switch(np.zeros((2, 5)), range(5)), "depth_fraction")
    assert found.to_numpy().ravel().tolist() == [0.0, 0.0]


def test_too_few_layers_with_a_position_have_no_number() -> None:
    two_known = _switch(np.random.default_rng(0).random((2, 5)), [0.0, None, None, 1.0, None])
    at_one_position = _switch(np.random.default_rng(0).random((2, 5)), [0.5] * 5)
    assert rank_trends(two_known, "depth_fraction").empty
    assert rank_trends(at_one_position, "depth_fraction").empty


@pytest.mark.parametrize(("slope", "low", "high"), [(0.0, 0.01, 0.09), (0.4, 0.95, 1.0)], ids=["flat", "planted"])
def test_trends_with_depth_are_found_where_they_are(slope: float, low: float, high: float) -> None:
    random = np.random.default_rng(1)
    weights = slope * np.linspace(0, 1, 9) + random.normal(0, 0.1, (DRAWS * 4, 9))
    trends = rank_trends(_switch(weights, range(9), SMALL_RESNET), "depth_fraction")["mean", "bn"]
    by_key = trends.loc[[f"n{number}" for number in range(DRAWS * 4)]].to_numpy().reshape(DRAWS, 4)
    p_values = np.array([stats.ttest_1samp(replicates, 0).pvalue for replicates in by_key])
    assert low <= np.mean(p_values < 0.05) <= high


# ------------------------------------------------------------------------------------------------ with B


LEVEL_CELLS = pd.DataFrame({"batch_size": LEVELS, "depth": 8})


def test_the_slope_is_that_of_least_squares_over_cells() -> None:
    values = np.random.default_rng(4).normal(size=(4, 5)) + 0.05 * np.log2(LEVELS)[:, None]
    weights = slope_weights(LEVEL_CELLS, ["depth"], ["batch_size"])
    assert weights is not None
    slopes = [stats.linregress(np.log2(LEVELS), replicate).slope for replicate in values.T]
    expected = estimate_mean(slopes, 0.95)
    found = estimate_contrast(values, weights[0], 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_without_a_trend_intervals_hold_zero_and_with_one_they_do_not() -> None:
    random, weights = np.random.default_rng(2), slope_weights(LEVEL_CELLS, [], ["batch_size"])
    assert weights is not None
    noise = [random.normal(0, 0.02, (4, 5)) + random.normal(0, 0.1, 5) for _ in range(DRAWS)]
    flat = [estimate_contrast(each, weights[0], 0.95).excludes(0) for each in noise]
    planted = [estimate_contrast(each + 0.05 * np.log2(LEVELS)[:, None], weights[0], 0.95).above(0) for each in noise]
    assert np.mean(flat) <= 0.09
    assert np.mean(planted) >= 0.95


def test_one_level_has_no_slope() -> None:
    assert slope_weights(LEVEL_CELLS[:1], [], ["batch_size"]) is None


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
        values, weights = _world(cells, b, gradient, random), slope_weights(cells, [], AXES)
        assert weights is not None
        covered += [
            holds(estimate_contrast(values, axis, 0.95), t) for axis, t in zip(weights, (b, gradient), strict=True)
        ]
        if draw < DRAWS // 5:
            leaders.append(leading_axis(values, weights, 0.95))
    assert np.all((covered / DRAWS >= 0.91) & (covered / DRAWS <= 0.99))
    assert leaders.count(leader) >= 0.8 * len(leaders)  # the others: not told
    assert set(leaders) <= {leader, None}


@pytest.mark.parametrize("slope", [0.0, 0.03], ids=["neither", "both alike"])
def test_neither_axis_leads_where_both_are_alike(slope: float) -> None:
    random, cells = np.random.default_rng(8), _cells((2, 4, 8, 16), (16, 32, 64))
    weights = slope_weights(cells, [], AXES)
    assert weights is not None
    led = [leading_axis(_world(cells, slope, slope, random), weights, 0.95) for _ in range(100)]
    assert sum(leader is not None for leader in led) <= 0.09 * len(led)


def test_cells_are_compared_where_they_agree_in_other_factors() -> None:
    # The larger depth lies at larger B alone: without its groups, its 0.3 would be taken for B's.
    cells = pd.concat([_cells((2, 4), (16, 32), (0,)), _cells((8, 16), (16, 32), (1,))], ignore_index=True)
    values = _world(cells, 0.05, 0.0, np.random.default_rng(9))
    within, pooled = slope_weights(cells, ["depth"], AXES), slope_weights(cells, [], AXES)
    assert within is not None
    assert pooled is not None
    assert holds(estimate_contrast(values, within[0], 0.95), 0.05)
    assert float(np.mean(pooled[0] @ values)) > 0.1


_G_IS_8 = pd.DataFrame({"statistics_batch": [2, 8], "gradient_batch": [16, 64]})


@pytest.mark.parametrize(
    "cells",
    [_cells((2, 4, 8), (16,)), _cells((2,), (16, 32)), _G_IS_8],
    ids=["G x B is fixed", "B is fixed", "G is fixed"],
)
def test_axes_that_do_not_vary_apart_are_not_told_apart(cells: pd.DataFrame) -> None:
    assert slope_weights(cells, [], AXES) is None


def test_the_study_of_both_axes_changes_nothing_else() -> None:
    plan = plan_trials(load_study("batch_axes"))
    assert len({(trial.steps, trial.config.base_learning_rate) for trial in plan}) == 1
    axes = np.log2([(trial.statistics_batch, trial.gradient_batch) for trial in plan])
    assert np.corrcoef(axes.T)[0, 1] == pytest.approx(0)


# -------------------------------------------------------------------------------------------- statistics


def test_a_grid_holds_every_number_of_a_finished_trial_and_leaves_out_cells_without_any() -> None:
    rows = [(f"c{cell}-r{replicate}", f"c{cell}", replicate, "done") for replicate, cell in product(range(3), range(4))]
    trials = pd.DataFrame(rows, columns=["key", "trial_id", "replicate", "state"], index=range(100, 112))
    trials.loc[101, "state"] = "diverged"  # cell 1 in replicate 0
    numbers = pd.DataFrame({"value": np.arange(12.0)}, index=trials["key"]).drop(["c3-r0", "c3-r1", "c3-r2"])
    grid = build_grid(trials, numbers)
    assert grid.cells["trial_id"].tolist() == ["c0", "c2", "c1"]  # in the order of their first results
    assert grid.trials == [100, 102, 104, 105, 106, 108, 109, 110]
    assert np.array_equal(grid.values[:, :, 0], [[0, 4, 8], [2, 6, 10], [np.nan, 5, 9]], equal_nan=True)
    nothing = build_grid(trials, numbers[:0])
    assert nothing.values.shape == (0, 0, 1)
    assert nothing.trials == []
