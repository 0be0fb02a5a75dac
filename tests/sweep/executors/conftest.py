"""What the tests of real clusters share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from tests.sweep.jobs import build_job


@pytest.fixture
def local_numbers(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Trains the trials of a study in this process; returns their numbers by key, for comparison with a cluster's."""

    def train(*settings: str) -> dict[str, Any]:
        from study.training.trial import run_job
        from tests.training.test_resume import all_numbers

        folder = StudyFolder(tmp_path / "local")
        study = load_study("depth_vs_batch", "smoke", settings)
        for trial in plan_trials(study):
            job = replace(build_job(trial, folder), run=study.run)
            run_job(job.assign(("cpu",) * study.run.devices_per_trial, threads=1))
        return all_numbers(folder)

    return train
