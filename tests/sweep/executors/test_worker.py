"""What runs in a cluster's job, with a pool that only writes records; and how often a trial is tried again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study.bench.speed.trial import make_job
from study.config.schema import LaunchConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import SCHEMA, StudyFolder, TrialFolder
from study.sweep.executors import worker
from study.sweep.retries import RetryPolicy
from study.training.preemption import SIGNALS

Act = Callable[[TrialFolder], str]


def finish(record: TrialFolder) -> str:
    result = {"schema": SCHEMA, "status": "done", "metrics": {}, "files": {}}
    write_json(record.result, result)
    return "ended with exit code 0"


def leave(record: TrialFolder) -> str:
    write_json(record.state, {"state": "interrupted", "attempt": 1, "failures": 0, "reason": "SIGTERM after step 7"})
    return "ended with exit code 0"


def fail(record: TrialFolder) -> str:
    _, failures = record.attempts()
    write_json(record.state, {"state": "failed", "attempt": 1, "failures": failures + 1, "reason": "OSError: no"})
    return "ended with exit code 0"


def kill(record: TrialFolder) -> str:
    write_json(record.state, {"state": "running", "attempt": 1, "failures": 0})
    return "killed by SIGKILL"


def fates(tmp_path: Path, acts: Sequence[Act], **limits: int) -> list[str]:
    retries, record = RetryPolicy(**{"max_attempts": 3, "requeues": 2, **limits}), TrialFolder(tmp_path / "cell" / "r0")
    return [retries.next_step(record, act(record))[0] for act in acts]


def test_a_trial_is_tried_again_until_a_limit_and_leaving_counts_apart(tmp_path: Path) -> None:
    assert fates(tmp_path / "a", [fail, fail, fail]) == ["retry", "retry", "give up"]
    assert fates(tmp_path / "b", [kill, kill, kill]) == ["retry", "retry", "give up"]
    assert fates(tmp_path / "c", [leave, leave, leave]) == ["retry", "retry", "give up"]
    assert fates(tmp_path / "d", [leave, kill, leave, fail, finish]) == ["retry"] * 4 + ["done"]
    assert fates(tmp_path / "e", [leave], requeues=0) == ["give up"]


def test_a_trial_that_something_else_trains_is_left_to_it(tmp_path: Path) -> None:
    record = TrialFolder(tmp_path / "cell" / "r0")
    kill(record)
    with record.lock():
        assert RetryPolicy(max_attempts=1, requeues=0).next_step(record, "ended") == ("elsewhere", "")


class Pool:
    """In place of the local pool: every trial ends at once, as `act` says."""

    act: Act
    started: list[tuple[str, str]]
    graces: list[float]

    def __init__(self, places: int, devices: Sequence[str], threads: int) -> None:
        self.places = self.limit = places
        self.ended: dict[str, str] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            type(self).started.append((job.trial.key, job.place))
            self.ended[job.trial.key] = type(self).act(TrialFolder(job.folder))
        assert len(self.ended) <= self.places

    def wait(self, seconds: float) -> dict[str, str]:
        ended, self.ended = self.ended, {}
        return ended

    def close(self, grace: float) -> None:
        type(self).graces.append(grace)


def run_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: Act, trials: int = 3) -> tuple[bool, type[Pool]]:
    pool: Any = type("OnePool", (Pool,), {"act": staticmethod(act), "started": [], "graces": []})
    monkeypatch.setattr(worker, "LocalExecutor", pool)
    folder = StudyFolder(tmp_path)
    planned = plan_trials(load_study("depth_vs_batch", "laptop"))[:trials]
    jobs = [make_job(trial, folder.trial(trial.trial_id, trial.replicate).path, threads=1) for trial in planned]
    return worker.work(jobs, LaunchConfig(cpus=2, requeues=1), place="slurm 7_1", grace=5.0), pool


def test_a_job_trains_each_of_its_trials_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, pool = run_worker(monkeypatch, tmp_path, finish)
    assert not asked
    assert len(pool.started) == len(set(pool.started)) == 3
    assert {place for _, place in pool.started} == {"slurm 7_1"}
    assert pool.graces == [5.0]


def test_a_job_tries_again_and_says_why_it_gave_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody else may be watching: what the driver would print has to be in the record."""
    asked, pool = run_worker(monkeypatch, tmp_path, kill, trials=1)
    assert not asked
    assert len(pool.started) == 3
    (trial,) = StudyFolder(tmp_path).trials()
    assert trial.status() == ("failed", "its process killed by SIGKILL")
    assert trial.attempts()[1] == 0  # held against nobody: the same command tries again


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_job_and_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def warned(record: TrialFolder) -> str:
        os.kill(os.getpid(), number)
        return leave(record)

    asked, pool = run_worker(monkeypatch, tmp_path, warned)
    assert asked
    assert len(pool.started) == 2  # the two that were running; the third was never started
    assert signal.getsignal(number) is before
    states = [read_json(trial.state) for trial in StudyFolder(tmp_path).trials()]
    assert [state["state"] for state in states if state] == ["interrupted"] * 2


def run_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: Act, start_done: bool) -> tuple[list[str], Any]:
    """A job of two trials that start from a third, in the job unless that one is done."""
    pool: Any = type("OnePool", (Pool,), {"act": staticmethod(act), "started": [], "graces": []})
    monkeypatch.setattr(worker, "LocalExecutor", pool)
    settings = ["norm=sn", "batch_size=2", "factors.start_rule=[fine_tune, argmax, scratch]"]
    folder = StudyFolder(tmp_path)
    trials = {
        trial.levels["start_rule"]: trial for trial in plan_trials(load_study("depth_vs_batch", "smoke", settings))
    }
    start = folder.trial(trials["scratch"].trial_id, 0)
    if start_done:
        finish(start)
        del trials["scratch"]
    jobs = [replace(make_job(trial, folder.trial(trial.trial_id, 0).path, threads=1), start=start.path)
            for trial in trials.values()]  # fmt: skip
    worker.work(jobs, LaunchConfig(cpus=2), place="slurm 7", grace=5.0)
    return [key.split("-")[-3] for key, _ in pool.started], folder


def test_a_job_holds_back_what_starts_from_another_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started, _ = run_starts(monkeypatch, tmp_path / "own", finish, start_done=False)
    assert started == ["scratch", "fine_tune", "argmax"]
    started, _ = run_starts(monkeypatch, tmp_path / "other", finish, start_done=True)
    assert started == ["fine_tune", "argmax"]


def test_a_job_says_what_it_cannot_start_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started, folder = run_starts(monkeypatch, tmp_path, fail, start_done=False)
    assert set(started) == {"scratch"}
    reasons = [trial.status()[1] for trial in folder.trials() if "scratch" not in trial.trial_id]
    assert len(reasons) == 2
    assert all(reason.endswith("has no weights: failed") for reason in reasons)
