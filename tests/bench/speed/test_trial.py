"""The benchmark of a trial measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from study.bench.speed.trial import race
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from tests.conftest import ROOT


@pytest.mark.parametrize("overrides", [["norm=sn"], ["norm=bn", "solver=adam", "decay=step"]], ids=["sn", "adam"])
def test_the_bare_loop_is_the_same_training(tmp_path: Path, overrides: list[str]) -> None:
    overrides = [*overrides, "batch_size=2", "depth=8", "epochs=2", "train_samples=64", "replicates=1"]
    trial = plan_trials(load_study("depth_vs_batch", "laptop", overrides))[0]
    pair, same = race(trial, tmp_path / "r0", threads=1, device="cpu")
    assert same
    assert len(pair.seconds) == 2
    assert all(ratio > 0 for ratio in pair.ratios)


@pytest.mark.slow
def test_quick_mode_measures_everything(tmp_path: Path) -> None:
    file = tmp_path / "trial.json"
    command = [sys.executable, "-m", "study.bench", "trial", "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())["figures"]}
    assert figures["the very same weights"]["met"]
    for name in ("harness / bare loop, the time of all cells", "fixed cost of a trial, W&B offline, seconds"):
        assert figures[name]["value"] > 0
