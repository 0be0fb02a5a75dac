"""Jobs for tests that do not train. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from study.config.schema import RunConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import StudyFolder


def build_job(trial: PlannedTrial, folder: StudyFolder, start: Path | None = None) -> Job:
    """A job as the driver builds it."""
    return Job(
        trial=trial, folder=folder.trial(trial.trial_id, trial.replicate).path, study="s", run=RunConfig(),
        environment={"host": "h"}, command="c", start=start,
    )  # fmt: skip


def build_jobs(folder: StudyFolder, count: int) -> list[Job]:
    """Jobs of the first trials of a study."""
    return [build_job(trial, folder) for trial in plan_trials(load_study("depth_vs_batch", "laptop"))[:count]]
