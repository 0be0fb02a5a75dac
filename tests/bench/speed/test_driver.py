"""The benchmark of the driver: every trial is handled once, and the times are those that it names."""

from __future__ import annotations

import pytest

from study.bench.speed.driver import QUICK_SECONDS, QUICK_TRIALS
from study.bench.speed.sleeping_executor import _compute_least_time
from tests.bench.conftest import RunBench


def test_the_least_time_starts_a_trial_whenever_a_place_is_free() -> None:
    assert _compute_least_time([1.0, 2.0, 3.0], 1) == 6.0
    assert _compute_least_time([1.0, 2.0, 3.0], 2) == 4.0
    assert _compute_least_time([1.0, 2.0, 3.0], 9) == 3.0


@pytest.mark.slow
def test_every_trial_is_handled_once(run_bench: RunBench) -> None:
    no_pause, timed, rerun = run_bench("driver")["rows"]
    assert no_pause["trials"] == timed["trials"] == rerun["trials"] == QUICK_TRIALS
    assert timed["wall s"] >= timed["least s"] > QUICK_SECONDS
    assert rerun["least s"] == 0.0  # nothing was started again
