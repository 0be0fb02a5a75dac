"""Small trials for tests, and ways to interrupt them at a chosen step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.config.schema import RunConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import StudyFolder, TrialFolder
from study.tasks import TrainingModule
from study.training import recorder
from study.training.trial import run_job

STEPS = 12  # per epoch of a trial with the overrides `SHORT`, of 16 images each
SHORT = ("epochs=2", "chunks=8", "train_samples=192", "validation_fraction=0.5")


def smoke_trial(*overrides: str) -> PlannedTrial:
    return plan_trials(load_study("depth_vs_batch", "smoke", ["norm=sn", "batch_size=2", *overrides]))[0]


def job(trial: PlannedTrial, folder: Path) -> Job:
    return Job(
        trial=trial, folder=folder, study="s", run=RunConfig(checkpoint_seconds=0),
        environment={"host": "h"}, command="c",
    )  # fmt: skip


def numbers(folder: TrialFolder) -> tuple[Any, ...]:
    """Everything in a record that must not depend on interruptions."""
    result = folder.read_result()
    assert result is not None, folder.path
    return result["status"], result["metrics"], folder.metrics.read_bytes(), folder.switch_weights.read_bytes()


def all_numbers(folder: StudyFolder) -> dict[str, Any]:
    return {trial.key: numbers(trial) for trial in folder.trials()}


class Killed(BaseException):
    """Simulates SIGKILL in this process: no handler in the trial catches it."""


def train_and_die_after(monkeypatch: pytest.MonkeyPatch, work: Job, epoch: int) -> None:
    """Trains up to the checkpoint of an epoch, writes half a line of metrics, and dies."""
    original = recorder.Recorder._save

    def save(self: recorder.Recorder, trainer: Any) -> None:
        original(self, trainer)
        if len(self.history) - 1 == epoch:
            with self.folder.metrics.open("a") as file:
                file.write('{"schema": 1, "epoch": 99, "na')
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "_save", save)
        with pytest.raises(Killed):
            run_job(work)


def disturb(monkeypatch: pytest.MonkeyPatch, work: Job, hook: str, step: int, act: Callable[[], None]) -> None:
    """Runs a trial, and calls `act` once, in a hook of the module, when the trial has taken `step` steps."""
    original = getattr(TrainingModule, hook)
    calls = []

    def disturbed(module: TrainingModule, *arguments: Any) -> Any:
        if module.steps_taken == step and not calls:
            calls.append(step)
            act()
        return original(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, hook, disturbed)
        run_job(work)
    assert calls, (hook, step)


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
