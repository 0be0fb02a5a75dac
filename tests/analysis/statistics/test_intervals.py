from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from study.analysis.statistics.intervals import (
    Estimate,
    adjust_holm,
    bootstrap_interval,
    build_grid,
    find_bounds,
    jackknife,
    jackknife_interval,
    one_sided_p_value,
)
from tests.analysis.estimates import estimate_mean

# --------------------------------------------------------------------------------------------- intervals


def test_bootstrap_draws_the_means_of_whole_replicates() -> None:
    """Of three values the 27 resamples can be listed: the ends are quantiles of their means."""
    values = np.array([0.0, 1.0, 5.0])
    means = np.array(np.meshgrid(values, values, values)).mean(axis=0).ravel()
    assert bootstrap_interval(values, 0.8) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))
    assert bootstrap_interval(values, 0.8) == bootstrap_interval(values, 0.8)


@pytest.mark.parametrize("values", [[], [0.5], [0.1, 0.2], [0.1, 0.2, 0.2], [0.3, 0.3, 0.3]])
def test_no_bootstrap_below_three_distinct_replicates(values: list[float]) -> None:
    assert bootstrap_interval(values, 0.95) is None


# ----------------------------------------------------------------------------------------------- jackknife


def test_the_jackknife_of_a_mean_is_students_t() -> None:
    values = np.random.default_rng(0).normal(size=6)
    found = jackknife(lambda keep: float(values[keep].mean()), 6, 0.9)
    expected = (values.mean(), *stats.ttest_1samp(values, 0).confidence_interval(0.9))
    assert (found.value, found.low, found.high) == pytest.approx(expected)
    assert (found.n, found.freedom) == (6, 5)


@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 1.0], [1.0, 2.0, 0.5], [1.0, 2.0, 0.5, float("nan")], [1.0, 1.0, 1.0, 1.0]]
)
def test_no_jackknife_interval_of_few_replicates_or_without_a_spread(values: list[float]) -> None:
    found = jackknife_interval(values, 0.95)
    assert (found.value, found.low, found.high, found.freedom) == (1.0, None, None, None)


def test_what_certainly_does_not_vary_is_its_own_interval() -> None:
    found = jackknife_interval([0.3] * 4, 0.95, certain=True)
    assert (found.value, found.low, found.high, found.freedom) == (0.3, 0.3, 0.3, 2)
    assert jackknife_interval([0.3] * 3, 0.95, certain=True).low is None  # two replicates


def test_a_statistic_that_is_not_defined_has_no_value() -> None:
    assert jackknife_interval([float("nan"), 1.0, 2.0, 3.0], 0.95) == Estimate(n=3)


# ---------------------------------------------------------------------------------- p values from intervals


def _symmetric(value: float, confidence: float) -> Estimate:
    return estimate_mean(value + np.array([-0.3, 0.1, 0.4, -0.2, 0.0]), confidence)


def _asymmetric(value: float, confidence: float) -> Estimate:
    """An interval that is Student's t on a logarithmic scale."""

    def bounds(at: float) -> tuple[float, float]:
        reach = 0.4 * float(special.stdtrit(3, (1 + at) / 2))
        return float(value * np.exp(-reach)), float(value * np.exp(reach))

    low, high = bounds(confidence)
    return Estimate(value=value, low=low, high=high, n=4, freedom=3, bounds=bounds)


@pytest.mark.parametrize("build", [_symmetric, _asymmetric])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
@pytest.mark.parametrize("line", [0.02, 0.3, 0.77, 1.0, 1.31, 3.0, 9.0])
def test_one_sided_p_values_are_small_where_the_interval_lies_beyond_the_line(
    build: Callable[[float, float], Estimate], confidence: float, line: float
) -> None:
    estimate = build(1.0, confidence)
    above, below = (one_sided_p_value(estimate, line, confidence, above=way) for way in (True, False))
    assert above is not None
    assert above + (below or 0) == pytest.approx(1)
    level = (1 - confidence) / 2
    assert (above < level) == estimate.above(line)
    assert ((below or 0) < level) == estimate.below(line)


@pytest.mark.parametrize("build", [_symmetric, _asymmetric])
def test_the_p_value_of_an_end_is_the_level_and_that_of_the_value_one_half(
    build: Callable[[float, float], Estimate],
) -> None:
    estimate = build(1.0, 0.9)
    assert one_sided_p_value(estimate, estimate.low or 0, 0.9) == pytest.approx(0.05)
    assert one_sided_p_value(estimate, estimate.high or 0, 0.9, above=False) == pytest.approx(0.05)
    assert one_sided_p_value(estimate, estimate.high or 0, 0.9) == pytest.approx(0.95)
    assert one_sided_p_value(estimate, estimate.value or 0, 0.9) == pytest.approx(0.5)


def test_p_values_from_an_interval_are_those_of_the_t_test() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 6)
    for line in (-1.0, 0.2, 2.0):
        found = one_sided_p_value(estimate_mean(values, 0.95), line, 0.95)
        assert found == pytest.approx(stats.ttest_1samp(values, line, alternative="greater").pvalue)


def test_p_values_fall_as_the_line_moves_away() -> None:
    for estimate in (_symmetric(1.0, 0.95), _asymmetric(1.0, 0.95)):
        found = [one_sided_p_value(estimate, line, 0.95) for line in np.linspace(1.9, 0.05, 30)]
        assert found == sorted(found, reverse=True)  # type: ignore[type-var]


def test_a_point_has_the_p_values_zero_and_one_and_no_interval_has_none() -> None:
    point = Estimate(value=0.2, low=0.2, high=0.2, n=4, freedom=3)
    assert [one_sided_p_value(point, line, 0.95) for line in (0.1, 0.2, 0.3)] == [0.0, 1.0, 1.0]
    assert [one_sided_p_value(point, line, 0.95, above=False) for line in (0.1, 0.2, 0.3)] == [1.0, 1.0, 0.0]
    assert one_sided_p_value(Estimate(value=0.2, n=2), 0.1, 0.95) is None
    assert one_sided_p_value(Estimate(), 0.1, 0.95) is None


def test_bounds_at_another_confidence() -> None:
    values = np.random.default_rng(4).normal(size=5)
    wide = estimate_mean(values, 0.99)
    assert find_bounds(estimate_mean(values, 0.9), 0.9, 0.99) == pytest.approx((wide.low, wide.high))
    with pytest.raises(ValueError, match="no interval"):
        find_bounds(Estimate(value=1.0, n=2), 0.95, 0.9)


# --------------------------------------------------------------------------------------------------- grids


def test_a_grid_holds_every_cell_with_a_number_and_every_replicate() -> None:
    trials = pd.DataFrame(
        [(f"cell{cell}", replicate, f"{cell}-{replicate}") for replicate in range(3) for cell in range(3)],
        columns=["trial_id", "replicate", "key"], index=range(20, 29),
    ).assign(state="done")  # fmt: skip
    trials.loc[trials["trial_id"].eq("cell1"), "state"] = "failed"
    trials.loc[20, "state"] = "diverged"
    numbers = pd.DataFrame({"x": np.arange(9.0), "y": 1.0}, index=trials["key"])
    numbers.loc["2-1", "y"] = np.nan
    grid = build_grid(trials, numbers)
    assert grid.cells["trial_id"].tolist() == ["cell2", "cell0"]
    # Without the diverged run, the failed cell, and the row in which a number is missing.
    assert grid.trials == [22, 23, 26, 28]
    found = {
        cell: sorted(row[np.isfinite(row)].tolist())
        for cell, row in zip(grid.cells["trial_id"], grid.values[:, :, 0], strict=True)
    }
    assert found == {"cell0": [3.0, 6.0], "cell2": [2.0, 8.0]}


# ---------------------------------------------------------------------------------------------- p-values


@pytest.mark.parametrize("size", [1, 2, 9])
def test_holm_is_that_of_statsmodels(size: int) -> None:
    p_values = np.random.default_rng(size).choice([0.0, 0.004, 0.01, 0.01, 0.03, 0.2, 1.0], size).tolist()
    assert adjust_holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_counts_tests_that_cannot_be_made_yet() -> None:
    assert adjust_holm([None, 0.01, 0.02]) == [None, pytest.approx(0.03), pytest.approx(0.04)]
    assert adjust_holm([]) == []
