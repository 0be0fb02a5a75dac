"""The driver, with an executor that only writes records."""

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
from study.plan.job import Job, split_processes
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.driver import Driver, SweepResult
from study.sweep.retries import CANCELLED
from tests.sweep import endings

End = Callable[[TrialFolder, int], str]


class FakeExecutor:
    """Ends every trial at once, as `end` says of its record and the number of its attempt: `done`, `killed`, or a
    reason of failure.
    """

    places = free = 2
    outlives_driver = False

    def __init__(self, end: End) -> None:
        self.end, self.started, self.ended, self.canceled = end, [], {}, False
        self.processes: list[list[str]] = []  # keys of the trials of each

    def reattach(self, keys: Collection[str]) -> set[str]:
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        self.processes += [[job.trial.key for job in own] for own in split_processes(jobs)]
        for job in jobs:
            record = TrialFolder(job.folder)
            self.started.append(job.trial.key)
            what = self.end(record, self.started.count(job.trial.key))
            write = {"done": endings.finish, "killed": endings.kill}.get(what)
            self.ended[job.trial.key] = write(record) if write else endings.fail(record, what)

    def wait(self, seconds: float) -> dict[str, str]:
        ended, self.ended = self.ended, {}
        return ended

    def count_waiting(self) -> dict[str, int]:
        return {}

    def cancel(self) -> None:
        self.canceled = True

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def unchecked_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of `endings` hold no more than a driver reads; test_damaged_results.py checks those that hold all."""
    monkeypatch.setattr("study.sweep.driver.find_damage", lambda *arguments: "")


def done(record: TrialFolder, attempt: int) -> str:
    return "done"


def drive(path: Path, end: End, *overrides: str, retry_failed: bool = False) -> tuple[SweepResult, FakeExecutor, str]:
    """Runs a study of 8 trials, one by one; returns the result, the executor, and what was printed."""
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled", "run.fuse=1", *overrides])
    executor, printed = FakeExecutor(end), io.StringIO()
    result = build_driver(study, path, executor, Console(file=printed, width=200), retry_failed).run()
    return result, executor, printed.getvalue()


def build_driver(
    study: StudyConfig, path: Path, executor: Any, console: Console | None = None, retry_failed: bool = False
) -> Driver:
    console = console or Console(file=io.StringIO())
    return Driver(
        study=study, folder=StudyFolder(path), executor=executor, environment={"host": "h"}, console=console,
        command_for=lambda trial: "c", retry_failed=retry_failed, listener=SweepProgress(console, StudyFolder(path)),
    )  # fmt: skip


def test_every_trial_runs_once(tmp_path: Path) -> None:
    result, executor, _ = drive(tmp_path, done)
    assert (result.failed, result.stopped) == ({}, "")
    assert len(executor.started) == len(set(executor.started)) == 8
    assert drive(tmp_path, done)[1].started == []


# ---------------------------------------------------------------------------------------------------------- failures


def test_trials_that_all_fail_alike_stop_the_study_and_the_same_command_tries_again(tmp_path: Path) -> None:
    result, executor, _ = drive(tmp_path, lambda record, attempt: "ValueError: broken")
    assert "the first 3 trials failed in the same way: ValueError: broken" in result.stopped
    assert len(executor.started) <= 4
    again, executor, _ = drive(tmp_path, done)  # once the fault is fixed
    assert (again.failed, len(executor.started)) == ({}, 8)


def test_trials_that_fail_in_different_ways_do_not_stop_the_study(tmp_path: Path) -> None:
    result, _, _ = drive(tmp_path, lambda record, attempt: f"ValueError: {record.key}")
    assert result.stopped == ""
    assert len(result.failed) == 8
    record = next(StudyFolder(tmp_path).trials())
    assert record.status() == ("failed", f"ValueError: {record.key}")
    assert (read_json(record.state) or {})["failures"] == 3


def test_a_trial_is_tried_three_times_and_then_only_by_retry_failed(tmp_path: Path) -> None:
    def sn_fails(record: TrialFolder, attempt: int) -> str:
        return "MemoryError: no" if record.trial_id.startswith("sn") else "done"

    result, executor, _ = drive(tmp_path, sn_fails)
    assert len(result.failed) == 4
    assert all(executor.started.count(key) == 3 for key in result.failed)
    result, executor, _ = drive(tmp_path, done)
    assert (len(result.failed), executor.started) == (4, [])
    result, executor, _ = drive(tmp_path, done, retry_failed=True)
    assert (result.failed, len(executor.started)) == ({}, 4)


def test_a_trial_that_failed_once_before_the_driver_was_killed_is_tried_again(tmp_path: Path) -> None:
    trial = plan_trials(load_study("depth_vs_batch", "smoke"))[0]
    endings.fail(StudyFolder(tmp_path).trial(trial.trial_id, 0))
    result, executor, _ = drive(tmp_path, done)
    assert result.failed == {}
    assert trial.key in executor.started


def test_a_killed_trial_does_not_count_as_a_failure(tmp_path: Path) -> None:
    result, _, printed = drive(tmp_path, lambda record, attempt: "killed" if attempt < 3 else "done")
    assert result.failed == {}
    assert "killed by SIGKILL; trying again" in printed
    result, _, _ = drive(tmp_path / "always", lambda record, attempt: "killed")
    assert len(result.failed) == 8
    assert drive(tmp_path / "always", done)[0].failed == {}


def test_a_full_disk_stops_the_study_and_fails_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        result, executor, _ = drive(tmp_path, lambda record, attempt: "killed")
        assert result.stopped.startswith("no space left on")
        assert executor.canceled
        assert result.failed == {}
    assert drive(tmp_path, done)[0].failed == {}


def test_a_damaged_database_is_moved_aside_and_written_again_from_the_records(tmp_path: Path) -> None:
    drive(tmp_path, done)
    folder = StudyFolder(tmp_path)
    folder.storage.write_bytes(b"x" * 40_000)
    _, executor, printed = drive(tmp_path, done)
    assert executor.started == []
    assert "study.db: damaged, moved to" in printed
    assert list(tmp_path.glob("study.db.damaged-*"))
    assert folder.storage.read_bytes()[:6] == b"SQLite"


# ------------------------------------------------------------------------------------------------- the study's folder


@pytest.fixture
def short_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.sweep.driver.LOCK_SECONDS", 0.1)


def test_a_second_driver_is_refused(tmp_path: Path, short_lock_timeout: None) -> None:
    with StudyFolder(tmp_path).lock(), pytest.raises(UserError, match="another driver"):
        drive(tmp_path, done)


def test_a_driver_waits_for_a_detached_one(tmp_path: Path, short_lock_timeout: None) -> None:
    folder = StudyFolder(tmp_path)
    write_json(folder.driver, {"pid": 1, "host": "h", "detached": True})
    held = threading.Event()

    def hold() -> None:
        with folder.lock():
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    result, executor, printed = drive(tmp_path, done)
    assert "detached driver (process 1 on h) is running this study" in printed
    assert (result.failed, len(executor.started)) == ({}, 8)


@pytest.mark.parametrize("text", ["study: 3", "study: {1: 2}", "", "[", "provenance: {}"])
def test_a_damaged_study_file_is_named(tmp_path: Path, text: str) -> None:
    StudyFolder(tmp_path).config.write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        drive(tmp_path, done)


def test_a_search_may_only_gain_trials(tmp_path: Path) -> None:
    search = ["search.sampler=random", "search.n_trials=4", "replicates=1"]
    drive(tmp_path, done, *search)
    result, _, _ = drive(tmp_path, done, *search, "search.n_trials=6")
    assert result.failed == {}
    for change in ("replicates=2", "batch_size=[2, 8]", "search.n_trials=2", "search.sampler=tpe"):
        with pytest.raises(UserError, match="a search planned with"):
            drive(tmp_path, done, *search, change)


def test_a_level_may_not_change_its_meaning(tmp_path: Path) -> None:
    setting = ["factors.size=[small]", "joint.size.small={width: 0.5, epochs: 1}"]
    drive(tmp_path, done, *setting)
    drive(tmp_path, done, *setting, "factors.size=[small, large]", "joint.size.large={width: 1.0}")
    with pytest.raises(UserError, match="size=small"):
        drive(tmp_path, done, *setting, "joint.size.small.epochs=2")


@pytest.mark.parametrize("fault", ["refuses locks", "grants every lock"])
def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def flock(file: Any, operation: int) -> None:
        if fault == "refuses locks":
            raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)  # in this process only: another one gets the lock that this one has not
    with pytest.raises(UserError, match="this file system has no file locks"):
        drive(tmp_path, done)
    assert not list(tmp_path.glob(".lock-test*"))


# ---------------------------------------------------------------------------------------------- trials in groups


def test_a_group_has_one_process_and_a_trial_that_was_killed_or_failed_has_its_own(tmp_path: Path) -> None:
    def end(record: TrialFolder, attempt: int) -> str:
        return "killed" if attempt == 1 and record.trial_id.startswith("bn") and record.replicate == 1 else "done"

    result, executor, _ = drive(tmp_path, end, "run.fuse=auto", "batch_size=2", "initialization=he_normal")
    assert result.failed == {}
    assert [[key[:2] + key[-2:] for key in process] for process in executor.processes] == [
        ["snr0", "snr1"], ["bnr0", "bnr1"], ["bnr1"],
    ]  # fmt: skip


def test_trials_of_one_group_that_fail_alike_do_not_stop_the_study(tmp_path: Path) -> None:
    def sn_fails(record: TrialFolder, attempt: int) -> str:
        return "MemoryError: no" if record.trial_id.startswith("sn") else "done"

    result, _, _ = drive(tmp_path, sn_fails, "run.fuse=auto", "replicates=4")
    assert (result.stopped, len(result.failed)) == ("", 8)
    result, _, _ = drive(tmp_path / "all", lambda record, attempt: "ValueError: broken", "run.fuse=auto")
    assert "the first 3 trials failed in the same way" in result.stopped


# ------------------------------------------------------------------------------------------- trials run by others


class QueueExecutor(FakeExecutor):
    """An executor whose jobs outlive the driver; the trials `queued` are in its queue from the start."""

    free = 1000
    outlives_driver = True

    def __init__(self, queued: Collection[str] = ()) -> None:
        super().__init__(done)
        self.queued = set(queued)

    def reattach(self, keys: Collection[str]) -> set[str]:
        return self.queued & set(keys)


def test_a_detached_driver_submits_everything_and_ends(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled"])
    executor = QueueExecutor()
    driver = build_driver(study, tmp_path, executor)
    driver.detach = True
    assert (driver.run().left, len(executor.started)) == (8, 8)


def test_a_detached_driver_also_submits_trials_that_wait_for_others(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled", *CHAIN])
    executor = FakeExecutor(lambda record, attempt: "killed")
    driver = build_driver(study, tmp_path, executor)
    driver.detach = True
    assert driver.run().left == 3
    assert sorted(rules(executor.started)) == ["argmax r0", "fine_tune r0", "scratch r0"]


def test_trials_that_an_earlier_driver_submitted_are_not_submitted_again(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled"])
    keys = [trial.key for trial in plan_trials(study)]
    executor = QueueExecutor(keys[:3])

    def end_queued(seconds: float) -> dict[str, str]:
        ended = {**executor.ended, **dict.fromkeys(executor.queued, "has a result")}
        for key in executor.queued:
            trial_id, _, replicate = key.rpartition("-r")
            endings.finish(StudyFolder(tmp_path).trial(trial_id, int(replicate)))
        executor.queued, executor.ended = set(), {}
        return ended

    executor.wait = end_queued  # type: ignore[method-assign]
    assert build_driver(study, tmp_path, executor).run().failed == {}
    assert executor.started == keys[3:]


def test_a_cancelled_trial_is_not_submitted_again_until_the_next_run(tmp_path: Path) -> None:
    """Nor is one that starts from it."""
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled", *CHAIN])
    executor = FakeExecutor(lambda record, attempt: "killed")
    executor.wait = lambda seconds: {executor.started[0]: f"{CANCELLED} with Slurm job 7_0"}  # type: ignore[method-assign]
    result = build_driver(study, tmp_path, executor).run()
    assert (result.cancelled, len(executor.started), len(result.failed)) == (executor.started[:1], 1, 2)
    executor = QueueExecutor()
    assert build_driver(study, tmp_path, executor).run().failed == {}
    assert len(executor.started) == 3


def test_a_trial_that_another_process_trains_is_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of an earlier driver holds the trial's lock for a while, then leaves its result."""
    monkeypatch.setattr("study.sweep.executors.attempts.LOCK_POLL_SECONDS", 0.01)
    study = load_study("depth_vs_batch", "smoke", ["tracking.mode=disabled", "norm=sn", "batch_size=2"])
    (trial,) = plan_trials(study)
    record = StudyFolder(tmp_path).trial(trial.trial_id, 0)
    record.path.mkdir(parents=True)
    lock = record.lock()
    lock.acquire()
    executor = FakeExecutor(lambda record, attempt: "killed")
    waits = []

    def wait(seconds: float) -> dict[str, str]:
        waits.append(seconds)
        if len(waits) == 5:
            endings.finish(record)
            lock.release()
        ended, executor.ended = executor.ended, {}
        return ended

    executor.wait = wait  # type: ignore[method-assign]
    assert build_driver(study, tmp_path, executor).run().failed == {}
    assert executor.started == [trial.key]
    assert len(waits) >= 5


# -------------------------------------------------------------------------------------- trials that start from others

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
    result, executor, _ = drive(tmp_path, done, *CHAIN)
    assert result.failed == {}
    assert rules(executor.started) == [
        "scratch r0", "scratch r1", "fine_tune r0", "fine_tune r1", "argmax r0", "argmax r1",
    ]  # fmt: skip
    shutil.rmtree(next(tmp_path.glob("trials/*argmax*")))
    assert rules(drive(tmp_path, done, *CHAIN)[1].started) == ["argmax r0", "argmax r1"]


def test_a_trial_fails_with_its_start_trial_and_runs_when_that_is_retried(tmp_path: Path) -> None:
    def one_fails(record: TrialFolder, attempt: int) -> str:
        return "OSError: no" if "scratch" in record.trial_id and record.replicate == 1 else "done"

    result, executor, _ = drive(tmp_path, one_fails, *CHAIN)
    assert rules(executor.started).count("scratch r1") == 3
    assert sorted(rules(list(result.failed))) == ["argmax r1", "fine_tune r1", "scratch r1"]
    reasons = {key.split("-")[-3]: reason for key, reason in result.failed.items()}
    (scratch,) = (key for key in result.failed if "scratch" in key)
    assert reasons["fine_tune"] == f"its start trial {scratch} has no weights: failed"
    (record,) = (trial for trial in StudyFolder(tmp_path).trials() if "fine_tune" in trial.key and trial.replicate == 1)
    assert record.status() == ("failed", reasons["fine_tune"])

    again, executor, _ = drive(tmp_path, done, *CHAIN)
    assert (len(again.failed), executor.started) == (3, [])
    retried, executor, _ = drive(tmp_path, done, *CHAIN, retry_failed=True)
    assert retried.failed == {}
    assert rules(executor.started) == ["scratch r1", "fine_tune r1", "argmax r1"]


def test_no_trial_starts_from_one_that_diverged(tmp_path: Path) -> None:
    def diverges(record: TrialFolder, attempt: int) -> str:
        if "scratch" in record.trial_id:
            endings.finish(record, "diverged")
            return "killed"
        return "done"

    result, _, _ = drive(tmp_path, diverges, *CHAIN)
    assert sorted(rules(list(result.failed))) == ["argmax r0", "argmax r1", "fine_tune r0", "fine_tune r1"]
    assert any(reason.endswith("has no weights: diverged") for reason in result.failed.values())
