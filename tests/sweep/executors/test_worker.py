"""The worker inside a cluster's job, with an executor that only writes records."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from study.config.schema import LaunchConfig
from study.config.signals import STOP_SIGNALS
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import read_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors import worker
from study.training.preemption import StopRequest, handle_signals
from tests.sweep.endings import fail, finish, interrupt, kill
from tests.sweep.jobs import build_job, build_jobs

End = Callable[[TrialFolder], str]


class FakeLocalExecutor:
    """Every trial ends at once, as `end` says."""

    end: End
    started: list[tuple[str, str]]
    graces: list[float]

    def __init__(self, places: int, devices: Sequence[str], threads: int) -> None:
        self.places = places
        self.ended: dict[str, str] = {}

    @property
    def free(self) -> int:
        return self.places - len(self.ended)

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.started.append((job.trial.key, job.place))
            self.ended[job.trial.key] = type(self).end(TrialFolder(job.folder))
        assert len(self.ended) <= self.places

    def wait(self, seconds: float) -> dict[str, str]:
        ended, self.ended = self.ended, {}
        return ended

    def close(self, grace: float) -> None:
        self.graces.append(grace)


def run_worker(monkeypatch: pytest.MonkeyPatch, jobs: Sequence[Job], end: End) -> tuple[StopRequest, Any]:
    executor: Any = type("OneExecutor", (FakeLocalExecutor,), {"end": staticmethod(end), "started": [], "graces": []})
    monkeypatch.setattr(worker, "LocalExecutor", executor)
    with handle_signals() as stop_request:
        worker.work(jobs, LaunchConfig(cpus=2, requeues=1), stop_request, place="slurm 7_1", grace=5.0)
    return stop_request, executor


def test_a_job_trains_each_of_its_trials_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_request, executor = run_worker(monkeypatch, build_jobs(StudyFolder(tmp_path), 3), finish)
    assert stop_request.signal is None
    assert len(executor.started) == len(set(executor.started)) == 3
    assert {place for _, place in executor.started} == {"slurm 7_1"}
    assert executor.graces == [5.0]


def test_a_job_retries_a_trial_and_records_why_it_gave_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver may not be running, so what it would print must be in the record."""
    _, executor = run_worker(monkeypatch, build_jobs(StudyFolder(tmp_path), 1), kill)
    assert len(executor.started) == 3
    (trial,) = StudyFolder(tmp_path).trials()
    assert trial.status() == ("failed", "its process killed by SIGKILL")
    assert trial.attempts()[1] == 0  # not a failure of the trial: the same command tries it again


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_a_job_before_it_starts_more_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def interrupt_job(record: TrialFolder) -> str:
        os.kill(os.getpid(), number)
        return interrupt(record)

    stop_request, executor = run_worker(monkeypatch, build_jobs(StudyFolder(tmp_path), 3), interrupt_job)
    assert stop_request.signal == number.name
    assert len(executor.started) == 2  # both places; the third trial never started
    assert signal.getsignal(number) is before
    states = [read_json(trial.state) for trial in StudyFolder(tmp_path).trials()]
    assert [state["state"] for state in states if state] == ["interrupted"] * 2


@pytest.mark.parametrize("finishes", [True, False])
def test_a_job_waits_for_a_trial_that_another_process_trains_for_a_limited_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finishes: bool
) -> None:
    monkeypatch.setattr("study.sweep.executors.attempts.LOCK_POLL_SECONDS", 0.01)
    monkeypatch.setattr(worker, "ELSEWHERE_LIMIT_SECONDS", 60.0 if finishes else 0.0)
    (job,) = build_jobs(StudyFolder(tmp_path), 1)
    record = TrialFolder(job.folder)
    record.path.mkdir(parents=True)
    lock = record.lock()
    lock.acquire()
    looks: list[float] = []

    def wait(self: FakeLocalExecutor, seconds: float) -> dict[str, str]:
        looks.append(seconds)
        if finishes and len(looks) == 50:
            finish(record)
            lock.release()
        ended, self.ended = self.ended, {}
        return ended

    monkeypatch.setattr(FakeLocalExecutor, "wait", wait)
    _, executor = run_worker(monkeypatch, [job], lambda record: "ended with exit code 0")
    lock.release()
    assert len(executor.started) == 1
    assert record.status()[0] == ("done" if finishes else "planned")


def run_starts(monkeypatch: pytest.MonkeyPatch, folder: StudyFolder, end: End, *, start_is_done: bool) -> list[str]:
    """Runs two trials that start from a third, which is in the same job or already done; returns the order."""
    settings = ["norm=sn", "batch_size=2", "factors.start_rule=[fine_tune, argmax, scratch]"]
    trials = {
        trial.levels["start_rule"]: trial for trial in plan_trials(load_study("depth_vs_batch", "smoke", settings))
    }
    start = folder.trial(trials["scratch"].trial_id, 0)
    if start_is_done:
        finish(start)
        del trials["scratch"]
    jobs = [build_job(trial, folder, start.path) for trial in trials.values()]
    _, executor = run_worker(monkeypatch, jobs, end)
    return [key.split("-")[-3] for key, _ in executor.started]


def test_a_trial_waits_for_its_start_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    same, other = StudyFolder(tmp_path / "same"), StudyFolder(tmp_path / "other")
    assert run_starts(monkeypatch, same, finish, start_is_done=False) == ["scratch", "fine_tune", "argmax"]
    assert run_starts(monkeypatch, other, finish, start_is_done=True) == ["fine_tune", "argmax"]


def test_a_trial_whose_start_trial_failed_is_recorded_as_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path)
    assert set(run_starts(monkeypatch, folder, fail, start_is_done=False)) == {"scratch"}
    reasons = [trial.status()[1] for trial in folder.trials() if "scratch" not in trial.trial_id]
    assert len(reasons) == 2
    assert all(reason.endswith("has no weights: failed") for reason in reasons)
