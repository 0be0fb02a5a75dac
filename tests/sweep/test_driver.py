"""The driver's rules, with an executor that only writes records."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from study.config import StudyConfig, load_study
from study.job import Job
from study.reading import UserError
from study.record.files import SCHEMA, StudyFolder, TrialFolder, file_facts, read_json, write_json
from study.sweep.driver import Driver, Outcome

Act = Callable[[TrialFolder, int], str]


class FakeExecutor:
    """Ends every job at once, as `act` says: done, failed or killed."""

    places = limit = 2
    outlives_driver = False

    def __init__(self, act: Act) -> None:
        self.act, self.started, self.ended, self.canceled = act, [], {}, False

    def adopt(self, keys: Collection[str]) -> set[str]:
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.end(job)

    def end(self, job: Job) -> None:
        record = TrialFolder(job.folder)
        self.started.append(job.trial.key)
        attempt, failures = record.attempts()
        what = self.act(record, self.started.count(job.trial.key))
        if what == "done":
            record.metrics.parent.mkdir(parents=True, exist_ok=True)
            record.metrics.write_text("")
            metrics = {"val_accuracy": 0.9}
            files = {"metrics.jsonl": file_facts(record.metrics)}
            result = {"schema": SCHEMA, "status": "done", "seconds": 1.0, "metrics": metrics, "files": files}
            write_json(record.result, result)
        elif what != "killed":
            state = {"state": "failed", "attempt": attempt + 1, "failures": failures + 1}
            write_json(record.state, {**state, "reason": what, "traceback": what})
        self.ended[job.trial.key] = "killed by SIGKILL" if what == "killed" else "ended"

    def wait(self, seconds: float) -> dict[str, str]:
        ended, self.ended = self.ended, {}
        return ended

    def cancel(self) -> None:
        self.canceled = True

    def close(self) -> None:
        pass


def drive(path: Path, act: Act, *overrides: str, retry_failed: bool = False) -> tuple[Outcome, FakeExecutor, str]:
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled", *overrides])
    executor, said = FakeExecutor(act), io.StringIO()
    outcome = build(study, path, executor, Console(file=said, width=200), retry_failed).run()
    return outcome, executor, said.getvalue()


def build(study: StudyConfig, path: Path, executor: Any, console: Console, retry_failed: bool = False) -> Driver:
    return Driver(
        study=study, folder=StudyFolder(path), executor=executor, environment={"host": "h"}, console=console,
        command_for=lambda trial: "c", retry_failed=retry_failed,
    )  # fmt: skip


def done(record: TrialFolder, attempt: int) -> str:
    return "done"


def test_every_trial_runs_once(tmp_path: Path) -> None:
    outcome, executor, _ = drive(tmp_path, done)
    assert (outcome.failed, outcome.stopped) == ({}, "")
    assert len(executor.started) == len(set(executor.started)) == 8
    assert drive(tmp_path, done)[1].started == []


def test_trials_that_all_fail_alike_stop_the_study_and_the_same_command_tries_again(tmp_path: Path) -> None:
    outcome, executor, _ = drive(tmp_path, lambda record, attempt: "ValueError: broken")
    assert "the first 3 trials failed in the same way: ValueError: broken" in outcome.stopped
    assert len(executor.started) <= 4
    again, executor, _ = drive(tmp_path, done)  # once the fault is mended
    assert (again.failed, len(executor.started)) == ({}, 8)


def test_trials_that_fail_each_in_its_way_do_not(tmp_path: Path) -> None:
    outcome, _, _ = drive(tmp_path, lambda record, attempt: f"ValueError: {record.key}")
    assert outcome.stopped == ""
    assert len(outcome.failed) == 8


def test_a_failure_is_tried_three_times_then_left_until_it_is_asked_for(tmp_path: Path) -> None:
    def sn_fails(record: TrialFolder, attempt: int) -> str:
        return "MemoryError: no" if record.trial_id.startswith("sn") else "done"

    outcome, executor, _ = drive(tmp_path, sn_fails)
    assert len(outcome.failed) == 4
    assert all(executor.started.count(key) == 3 for key in outcome.failed)
    outcome, executor, _ = drive(tmp_path, done)
    assert (len(outcome.failed), executor.started) == (4, [])
    outcome, executor, _ = drive(tmp_path, done, retry_failed=True)
    assert (outcome.failed, len(executor.started)) == ({}, 4)


def test_failures_are_counted_over_restarts_of_the_driver(tmp_path: Path) -> None:
    """One failure and a driver killed before the second attempt: the same command goes on with the trial."""
    study = load_study("depth_vs_batch", "smoke")
    from study.plan import plan_trials

    trial = plan_trials(study)[0]
    record = StudyFolder(tmp_path).trial(trial.trial_id, 0)
    write_json(record.state, {"state": "failed", "attempt": 1, "failures": 1, "reason": "r", "traceback": "t"})
    outcome, executor, _ = drive(tmp_path, done)
    assert outcome.failed == {}
    assert trial.key in executor.started


def test_a_killed_trial_is_no_failure(tmp_path: Path) -> None:
    outcome, _, said = drive(tmp_path, lambda record, attempt: "killed" if attempt < 3 else "done")
    assert outcome.failed == {}
    assert "killed by SIGKILL; trying again" in said
    outcome, _, _ = drive(tmp_path / "hopeless", lambda record, attempt: "killed")
    assert len(outcome.failed) == 8
    assert drive(tmp_path / "hopeless", done)[0].failed == {}  # a kill is never held against a trial


def test_a_damaged_database_is_set_aside_and_made_anew_from_the_records(tmp_path: Path) -> None:
    drive(tmp_path, done)
    folder = StudyFolder(tmp_path)
    folder.storage.write_bytes(b"x" * 40_000)
    _, executor, said = drive(tmp_path, done)
    assert executor.started == []
    assert "study.db: damaged, set aside" in said
    assert list(tmp_path.glob("study.db.damaged-*"))
    assert folder.storage.read_bytes()[:6] == b"SQLite"


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    with StudyFolder(tmp_path).lock(), pytest.raises(UserError, match="another driver"):
        drive(tmp_path, done)


@pytest.mark.parametrize("text", ["study: 3", "study: {1: 2}", "", "[", "provenance: {}"])
def test_a_damaged_study_file_is_named(tmp_path: Path, text: str) -> None:
    StudyFolder(tmp_path).config.write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        drive(tmp_path, done)


def test_a_search_may_grow_in_trials_and_in_nothing_else(tmp_path: Path) -> None:
    search = ["search.sampler=random", "search.n_trials=4", "replicates=1"]
    drive(tmp_path, done, *search)
    outcome, _, _ = drive(tmp_path, done, *search, "search.n_trials=6")
    assert outcome.failed == {}
    for change in ("replicates=2", "batch_size=[2, 8]", "search.n_trials=2", "search.sampler=tpe"):
        with pytest.raises(UserError, match="a search planned with"):
            drive(tmp_path, done, *search, change)


def test_the_record_of_what_failed_can_be_read(tmp_path: Path) -> None:
    drive(tmp_path, lambda record, attempt: f"ValueError: {record.key}")
    record = next(StudyFolder(tmp_path).trials())
    assert record.status() == ("failed", f"ValueError: {record.key}")
    assert (read_json(record.state) or {})["failures"] == 3
