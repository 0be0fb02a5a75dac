"""The driver's rules, with an executor that only writes records."""

from __future__ import annotations

import errno
import io
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from study.cli.progress import SweepProgress
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import file_digest, read_json, write_json
from study.record.layout import SCHEMA, StudyFolder, TrialFolder
from study.sweep.driver import Driver, SweepResult

Act = Callable[[TrialFolder, int], str]


class FakeExecutor:
    """Ends every job at once, as `act` says: done, failed or killed."""

    places = limit = 2
    outlives_driver = False

    def __init__(self, act: Act) -> None:
        self.act, self.started, self.ended, self.canceled = act, [], {}, False

    def reattach(self, keys: Collection[str]) -> set[str]:
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
            write_done(record)
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


def write_done(record: TrialFolder, status: str = "done") -> None:
    record.metrics.parent.mkdir(parents=True, exist_ok=True)
    record.metrics.write_text("")
    files = {"metrics.jsonl": file_digest(record.metrics)}
    metrics = {"val_accuracy": 0.9}
    write_json(record.result, {"schema": SCHEMA, "status": status, "seconds": 1.0, "metrics": metrics, "files": files})


def drive(path: Path, act: Act, *overrides: str, retry_failed: bool = False) -> tuple[SweepResult, FakeExecutor, str]:
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled", *overrides])
    executor, said = FakeExecutor(act), io.StringIO()
    outcome = build(study, path, executor, Console(file=said, width=200), retry_failed).run()
    return outcome, executor, said.getvalue()


def build(study: StudyConfig, path: Path, executor: Any, console: Console, retry_failed: bool = False) -> Driver:
    return Driver(
        study=study, folder=StudyFolder(path), executor=executor, environment={"host": "h"}, console=console,
        command_for=lambda trial: "c", retry_failed=retry_failed, listener=SweepProgress(console, StudyFolder(path)),
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
    assert "study.db: damaged, moved to" in said
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


def test_another_meaning_of_a_level_is_refused(tmp_path: Path) -> None:
    setting = ["factors.size=[small]", "joint.size.small={width: 0.5, epochs: 1}"]
    drive(tmp_path, done, *setting)
    drive(tmp_path, done, *setting, "factors.size=[small, large]", "joint.size.large={width: 1.0}")
    with pytest.raises(UserError, match="size=small"):
        drive(tmp_path, done, *setting, "joint.size.small.epochs=2")


def test_the_record_of_what_failed_can_be_read(tmp_path: Path) -> None:
    drive(tmp_path, lambda record, attempt: f"ValueError: {record.key}")
    record = next(StudyFolder(tmp_path).trials())
    assert record.status() == ("failed", f"ValueError: {record.key}")
    assert (read_json(record.state) or {})["failures"] == 3


class QueueExecutor(FakeExecutor):
    """An engine whose jobs outlive the driver: they stay in its queue until someone asks."""

    limit = 1000
    outlives_driver = True

    def __init__(self, queued: Collection[str] = ()) -> None:
        super().__init__(done)
        self.queued = set(queued)

    def reattach(self, keys: Collection[str]) -> set[str]:
        return self.queued & set(keys)


def test_a_detached_driver_queues_everything_and_leaves(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled"])
    executor = QueueExecutor()
    driver = build(study, tmp_path, executor, Console(file=io.StringIO()))
    driver.detach = True
    outcome = driver.run()
    assert (outcome.left, len(executor.started)) == (8, 8)


def test_what_an_earlier_driver_has_queued_is_not_queued_again(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled"])
    keys = [trial.key for trial in plan_trials(study)]
    executor = QueueExecutor(keys[:3])

    def end_adopted(seconds: float) -> dict[str, str]:
        ended = {**executor.ended, **dict.fromkeys(executor.queued, "has a result")}
        for key in executor.queued:
            trial_id, _, replicate = key.rpartition("-r")
            write_done(StudyFolder(tmp_path).trial(trial_id, int(replicate)))
        executor.queued, executor.ended = set(), {}
        return ended

    executor.wait = end_adopted  # type: ignore[method-assign]
    assert build(study, tmp_path, executor, Console(file=io.StringIO())).run().failed == {}
    assert executor.started == keys[3:]


def test_a_trial_that_is_trained_elsewhere_is_waited_for_and_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that an earlier driver left holds its lock for a while, then leaves its result."""
    monkeypatch.setattr("study.sweep.attempts.LOCK_POLL_SECONDS", 0.01)
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled", "norm=sn", "batch_size=2"])
    (trial,) = plan_trials(study)
    record = StudyFolder(tmp_path).trial(trial.trial_id, 0)
    record.path.mkdir(parents=True)
    lock = record.lock().acquire()
    executor = FakeExecutor(lambda record, attempt: "killed")
    waits = []

    def wait(seconds: float) -> dict[str, str]:
        waits.append(seconds)
        if len(waits) == 5:
            write_done(record)
            lock.lock.release()
        ended, executor.ended = executor.ended, {}
        return ended

    executor.wait = wait  # type: ignore[method-assign]
    assert build(study, tmp_path, executor, Console(file=io.StringIO())).run().failed == {}
    assert executor.started == [trial.key]
    assert len(waits) >= 5


def test_a_full_disk_stops_the_study_and_is_no_trial_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        outcome, executor, _ = drive(tmp_path, lambda record, attempt: "killed")
        assert outcome.stopped.startswith("no space left on")
        assert executor.canceled
        assert outcome.failed == {}
    assert drive(tmp_path, done)[0].failed == {}


def test_a_detached_driver_is_waited_for(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    write_json(folder.driver, {"pid": 1, "host": "h", "detached": True})
    held = threading.Event()

    def hold() -> None:
        with folder.lock():
            held.set()
            time.sleep(2.0)

    threading.Thread(target=hold).start()
    held.wait()
    outcome, executor, said = drive(tmp_path, done)
    assert "detached driver (process 1 on h) is running this study" in said
    assert (outcome.failed, len(executor.started)) == ({}, 8)


@pytest.mark.parametrize("how", ["refuses", "locks nobody out"])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def flock(file: Any, operation: int) -> None:
        if how == "refuses":
            raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)  # in this process only: another one gets the lock that this one has not
    with pytest.raises(UserError, match="this file system has no file locks"):
        drive(tmp_path, done)
    assert not list(tmp_path.glob(".lock-test*"))


# ------------------------------------------------------------------------------- trials that start from others

CHAIN = (
    "norm=sn",
    "batch_size=2",
    "factors.start_rule=[argmax, fine_tune, scratch]",
    "start.cell={start_rule: fine_tune}",
)


def rules(keys: Sequence[str]) -> list[str]:
    """Rule and replicate of trials."""
    return [f"{key.split('-')[-3]} {key.split('-')[-1]}" for key in keys]


def test_a_trial_waits_for_the_one_that_it_starts_from(tmp_path: Path) -> None:
    outcome, executor, _ = drive(tmp_path, done, *CHAIN)
    assert outcome.failed == {}
    assert rules(executor.started) == [
        "scratch r0", "scratch r1", "fine_tune r0", "fine_tune r1", "argmax r0", "argmax r1",
    ]  # fmt: skip
    shutil.rmtree(next(tmp_path.glob("trials/*argmax*")))
    assert rules(drive(tmp_path, done, *CHAIN)[1].started) == ["argmax r0", "argmax r1"]


def test_what_starts_from_a_failed_trial_fails_with_it_and_runs_when_that_is_retried(tmp_path: Path) -> None:
    def one_fails(record: TrialFolder, attempt: int) -> str:
        return "OSError: no" if "scratch" in record.trial_id and record.replicate == 1 else "done"

    outcome, executor, _ = drive(tmp_path, one_fails, *CHAIN)
    assert rules(executor.started).count("scratch r1") == 3
    assert sorted(rules(list(outcome.failed))) == ["argmax r1", "fine_tune r1", "scratch r1"]
    reasons = {key.split("-")[-3]: reason for key, reason in outcome.failed.items()}
    (scratch,) = (key for key in outcome.failed if "scratch" in key)
    assert reasons["fine_tune"] == f"its start trial {scratch} has no weights: failed"
    (record,) = (trial for trial in StudyFolder(tmp_path).trials() if "fine_tune" in trial.key and trial.replicate == 1)
    assert record.status() == ("failed", reasons["fine_tune"])

    again, executor, _ = drive(tmp_path, done, *CHAIN)
    assert (len(again.failed), executor.started) == (3, [])
    retried, executor, _ = drive(tmp_path, done, *CHAIN, retry_failed=True)
    assert retried.failed == {}
    assert rules(executor.started) == ["scratch r1", "fine_tune r1", "argmax r1"]


def test_nothing_starts_from_a_trial_that_has_diverged(tmp_path: Path) -> None:
    def diverges(record: TrialFolder, attempt: int) -> str:
        if "scratch" in record.trial_id:
            write_done(record, "diverged")
            return "killed"
        return "done"

    outcome, _, _ = drive(tmp_path, diverges, *CHAIN)
    assert sorted(rules(list(outcome.failed))) == ["argmax r0", "argmax r1", "fine_tune r0", "fine_tune r1"]
    assert any(reason.endswith("has no weights: diverged") for reason in outcome.failed.values())


def test_an_engine_that_is_left_alone_gets_what_waits_for_others_too(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled", *CHAIN])
    executor = FakeExecutor(lambda record, attempt: "killed")
    driver = build(study, tmp_path, executor, Console(file=io.StringIO()))
    driver.detach = True
    assert driver.run().left == 3
    assert sorted(rules(executor.started)) == ["argmax r0", "fine_tune r0", "scratch r0"]
