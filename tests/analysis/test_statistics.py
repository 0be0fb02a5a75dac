from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from study.analysis.statistics import replicate_interval, replicates_needed

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
