"""The benchmark of a trial measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.bench.speed.trial import train_both_ways
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from tests.bench.conftest import RunBench


@pytest.mark.parametrize("overrides", [["norm=sn"], ["norm=bn", "solver=adam", "decay=step"]], ids=["sn", "adam"])
def test_the_bare_loop_is_the_same_training(tmp_path: Path, overrides: list[str]) -> None:
    overrides = [*overrides, "batch_size=2", "depth=8", "epochs=2", "train_samples=64", "replicates=1"]
    trial = plan_trials(load_study("depth_vs_batch", "laptop", overrides))[0]
    timer, equal = train_both_ways(trial, tmp_path / "r0", threads=1, device="cpu")
    assert equal
    assert len(timer.seconds) == 2
    assert all(ratio > 0 for ratio in timer.ratios)


@pytest.mark.slow
def test_quick_mode_measures_everything(run_bench: RunBench) -> None:
    figures = {figure["name"]: figure for figure in run_bench("trial")["figures"]}
    assert figures["the very same weights"]["met"]
    for name in ("harness / bare loop, the time of all cells", "fixed cost of a trial, W&B offline, seconds"):
        assert figures[name]["value"] > 0
