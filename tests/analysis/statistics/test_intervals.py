from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from study.analysis.statistics.intervals import (
    adjust_holm,
    bootstrap_interval,
    mean_p_value,
    replicate_interval,
    replicates_needed,
)

DRAWS = 200


# --------------------------------------------------------------------------------------------- intervals


def test_interval_is_student_t() -> None:
    values = [0.1, 0.3, 0.2, 0.6]
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    found = replicate_interval(values, 0.9)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.3, low, high, 4))


@pytest.mark.parametrize("values", [[0.5], [0.7, 0.7, 0.7]], ids=["one replicate", "identical replicates"])
def test_no_interval_without_a_spread(values: list[float]) -> None:
    found = replicate_interval(values, 0.95)
    assert found.value == pytest.approx(values[0])
    assert found.low is None
    assert not found.above(0)
    assert not found.below(1)


def test_no_value_without_replicates() -> None:
    assert replicate_interval([], 0.95).value is None


def test_interval_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        replicate_interval([0.1, float("nan")], 0.95)


def test_interval_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = sum(replicate_interval(random.normal(2, 3, 4), 0.95).contains(2) for _ in range(DRAWS))
    assert 0.91 <= covered / DRAWS <= 0.99


def test_replicates_needed_reaches_the_target() -> None:
    half_width = stats.t.ppf(0.975, 4) * 0.01 / np.sqrt(5)
    needed = replicates_needed(half_width, 0.004, 5, 0.95)
    assert needed is not None
    assert stats.t.ppf(0.975, needed - 1) * 0.01 / np.sqrt(needed) <= 0.004
    assert stats.t.ppf(0.975, needed - 2) * 0.01 / np.sqrt(needed - 1) > 0.004
    assert replicates_needed(half_width, 1e-9, 5, 0.95) is None


def test_bootstrap_draws_the_means_of_whole_replicates() -> None:
    """Of three values the 27 resamples can be listed: the ends are quantiles of their means."""
    values = np.array([0.0, 1.0, 5.0])
    means = np.array(np.meshgrid(values, values, values)).mean(axis=0).ravel()
    assert bootstrap_interval(values, 0.8) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))
    assert bootstrap_interval(values, 0.8) == bootstrap_interval(values, 0.8)


@pytest.mark.parametrize("values", [[], [0.5], [0.1, 0.2], [0.1, 0.2, 0.2], [0.3, 0.3, 0.3]])
def test_no_bootstrap_below_three_distinct_replicates(values: list[float]) -> None:
    assert bootstrap_interval(values, 0.95) is None


# ---------------------------------------------------------------------------------------------- p-values


@pytest.mark.parametrize("seed", range(10))
def test_p_values_agree_with_intervals(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.8, 1, 5)
    interval, p_value = replicate_interval(values, 0.9), mean_p_value(values)
    assert p_value is not None
    assert (p_value < 0.1) == (not interval.contains(0))
    one_sided = mean_p_value(values, 1.5, "less")
    assert one_sided is not None
    assert (one_sided < 0.05) == interval.below(1.5)


@pytest.mark.parametrize("values", [[], [0.5], [0.7, 0.7, 0.7]])
def test_no_p_value_without_a_spread(values: list[float]) -> None:
    assert mean_p_value(values) is None


@pytest.mark.parametrize("size", [1, 2, 9])
def test_holm_is_that_of_statsmodels(size: int) -> None:
    p_values = np.random.default_rng(size).choice([0.0, 0.004, 0.01, 0.01, 0.03, 0.2, 1.0], size).tolist()
    assert adjust_holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_counts_tests_that_cannot_be_made_yet() -> None:
    assert adjust_holm([None, 0.01, 0.02]) == [None, pytest.approx(0.03), pytest.approx(0.04)]
    assert adjust_holm([]) == []
