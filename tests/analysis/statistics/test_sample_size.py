from __future__ import annotations

import numpy as np
import pytest

from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.sample_size import MAX_REPLICATES, replicates_to_settle
from tests.analysis.estimates import estimate_mean

MARGIN = 0.005


def _ask(values: np.ndarray, **changes: int) -> tuple[int, float] | None:
    estimate = estimate_mean(values, 0.95)
    return replicates_to_settle(estimate, MARGIN, confidence=0.95, confidence_next=0.975, **changes)


@pytest.mark.parametrize("n", [3, 6])
def test_following_the_advice_settles_with_the_stated_probability(n: int) -> None:
    """Over true gains of all sizes; the advice is asked for where the first look leaves the comparison open."""
    random, settled = np.random.default_rng(n), []
    while len(settled) < 100:
        gain = random.normal(0, 0.02)
        first = random.normal(gain, 0.01, n)
        if estimate_mean(first, 0.95).excludes(MARGIN):
            continue
        found = _ask(first)
        if found is None:
            continue
        total, probability = found
        assert probability >= 0.8
        more = np.r_[first, random.normal(gain, 0.01, total - n)]
        settled.append(estimate_mean(more, 0.975).excludes(MARGIN))
    assert 0.72 <= np.mean(settled) <= 0.9


def test_it_takes_fewer_replicates_where_the_difference_is_clearer() -> None:
    shape = np.array([-0.02, -0.005, 0.0, 0.005, 0.02])
    needed = [found[0] for gain in (0.01, 0.015, 0.02) if (found := _ask(gain + shape))]
    assert len(needed) == 3
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] > 5


def test_more_comparisons_take_more_replicates_to_refute() -> None:
    values = np.array([-0.02, 0.01, 0.0, -0.01])
    one, many = _ask(values), _ask(values, n_refuting=6)
    assert one is not None
    assert many is not None
    assert many[0] > one[0]


def test_there_is_no_advice_without_an_interval_or_within_reach() -> None:
    assert replicates_to_settle(Estimate(value=0.1, n=1), MARGIN, confidence=0.95, confidence_next=0.975) is None
    # At the margin itself, hardly any number is enough.
    spread = 0.01 * np.random.default_rng(0).standard_normal(60)
    assert _ask(MARGIN + spread - spread.mean()) is None
    assert MAX_REPLICATES == 1000
