"""The measured time of a step, on which the forecast of `plan` rests."""

from __future__ import annotations

import time

import pytest

from study.norms.kernels import dispatch
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.training import cost_estimate


def test_compiling_the_kernels_is_not_part_of_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernels, seconds = dispatch._try_load, cost_estimate.BUDGET_SECONDS + 1

    def compile_slowly(device: str) -> bool:
        time.sleep(seconds)
        return compile_kernels(device)

    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setattr(dispatch, "_try_load", compile_slowly)
    cost_estimate._measure.cache_clear()
    trial = plan_trials(load_study("depth_vs_batch", "smoke", ["norm=[sn]", "batch_size=[2]"]))[0]
    started = time.monotonic()
    assert cost_estimate.measure_cell(trial).step_seconds < seconds / 2
    assert time.monotonic() - started >= seconds  # kernels were compiled
