"""What an observer knows about a study, from its records and from a driver's events."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from study.bench.synthetic_records import Truth, write_study, write_trial
from study.cli.study_observer import StudyObserver, describe_running, read_last_epoch
from study.config.schema import StudyConfig
from study.plan.loading import load_study, read_study_file
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors.slurm import QueuedJob
from tests.cli.conftest import NAME, write_failed


@pytest.fixture
def folder(study: StudyConfig, tmp_path: Path) -> StudyFolder:
    """Records of the four trials with `sn`; the four with `bn` are planned."""
    folder = StudyFolder(tmp_path / NAME)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    return folder


@pytest.fixture
def observer(folder: StudyFolder, study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> StudyObserver:
    observer = StudyObserver(folder, study)
    monkeypatch.setattr(observer.answers, "poll", lambda version: False)
    return observer


def records(folder: StudyFolder, study: StudyConfig, norm: str) -> list[TrialFolder]:
    return [folder.trial(trial.trial_id, trial.replicate) for trial in plan_trials(study) if trial.config.norm == norm]


def test_records_give_states_problems_running_trials_and_time_left(
    observer: StudyObserver, folder: StudyFolder, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, stale, running, queued = records(folder, study, "bn")
    write_failed(failed, "MemoryError")
    write_json(stale.state, {"state": "interrupted", "reason": "SIGTERM"})
    write_json(running.state, {"state": "running", "started": time.time() - 100, "host": "node7"})
    running.metrics.write_text('{"epoch": 1}\n')
    waiting = {queued.key: ("12_3", QueuedJob("PENDING", "Priority", ""))}
    monkeypatch.setattr("study.cli.study_observer.read_queue", lambda folder: waiting)
    with running.lock():
        observer.read_records()
        snapshot = observer.take_snapshot()
    assert (snapshot.name, snapshot.total, snapshot.finished) == (NAME, 8, 4)
    assert dict(+snapshot.states) == {"done": 4, "failed": 1, "stale": 1, "running": 1, "queued": 1}  # type: ignore[operator]
    assert [(problem.key, problem.reason) for problem in snapshot.problems] == [
        (failed.key, "MemoryError"), (stale.key, "SIGTERM")
    ]  # fmt: skip
    assert observer.trials[queued.key].reason == "Slurm job 12_3: PENDING (Priority)"
    assert snapshot.waiting == {"PENDING (Priority)": 1}
    (trial,) = snapshot.running
    assert (trial.key, trial.epoch, trial.epochs, trial.place) == (running.key, 1, 2, "node7")
    assert trial.seconds == pytest.approx(100, abs=10)
    costs = {trial.key: trial.cost for trial in plan_trials(study)}
    seconds = sum(float((record.read_result() or {})["seconds"]) for record in records(folder, study, "sn"))
    rate = seconds / sum(costs[record.key] for record in records(folder, study, "sn"))
    left = sum(costs[record.key] for record in (stale, running, queued))
    assert snapshot.seconds_left == pytest.approx(rate * left / 1)  # one runs now


def test_a_trial_whose_job_ended_without_a_result_is_stale_and_says_why(
    observer: StudyObserver, folder: StudyFolder, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_started, interrupted, *_ = records(folder, study, "bn")
    write_json(interrupted.state, {"state": "interrupted", "reason": "SIGTERM after step 7"})
    jobs = {
        never_started.key: ("12_3", QueuedJob("FAILED", "NonZeroExitCode", "n1")),
        interrupted.key: ("12_4", QueuedJob("CANCELLED", "None", "n1")),
        **{record.key: ("12_5", QueuedJob("COMPLETED", "None", "")) for record in records(folder, study, "sn")},
    }
    monkeypatch.setattr("study.cli.study_observer.read_queue", lambda folder: jobs)
    observer.read_records()
    observer.check_contents(read_study_file(folder.config))  # as `status` does
    assert {(trial.state, trial.reason) for trial in observer.trials.values() if trial.state == "stale"} == {
        ("stale", f"ended with Slurm job 12_3 (FAILED, {folder.jobs}/12_3_*.out)"),
        ("stale", f"ended with Slurm job 12_4 (CANCELLED, {folder.jobs}/12_4_*.out); SIGTERM after step 7"),
    }


def test_no_time_left_is_known_while_nothing_runs(observer: StudyObserver) -> None:
    observer.read_records()
    assert observer.take_snapshot().seconds_left is None


def test_a_finished_trial_is_read_again_only_if_its_result_was_replaced(
    observer: StudyObserver, folder: StudyFolder, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer.read_records()
    version, read = observer.version, []
    original = TrialFolder.read_result
    monkeypatch.setattr(TrialFolder, "read_result", lambda self: read.append(self.key) or original(self))
    planned, done = records(folder, study, "bn"), records(folder, study, "sn")[0]
    observer.read_records()
    assert observer.version == version
    assert not {record.key for record in records(folder, study, "sn")} & set(read)
    write_json(done.result, {**(read_json(done.result) or {}), "status": "diverged", "reason": "loss is NaN"})
    observer.read_records()
    assert observer.trials[done.key].state == "diverged"
    assert observer.version != version
    version = observer.version
    write_trial(folder, next(trial for trial in plan_trials(study) if trial.key == planned[0].key), Truth())
    observer.read_records()
    assert observer.version != version


def test_a_study_that_is_not_given_is_what_lies_on_disk(folder: StudyFolder, study: StudyConfig) -> None:
    observer = StudyObserver(folder)
    observer.read_records()
    version = observer.version
    assert set(observer.trials) == {record.key for record in records(folder, study, "sn")}
    write_failed(records(folder, study, "bn")[0], "MemoryError")
    observer.read_records()
    assert observer.version != version
    shutil.rmtree(folder.path / "trials")
    observer.read_records()
    assert observer.trials == {}


def test_a_search_counts_the_trials_that_it_has_not_suggested_yet(tmp_path: Path) -> None:
    study = load_study("learning_rates", "smoke")
    assert study.search is not None
    observer = StudyObserver(StudyFolder(tmp_path / "learning_rates"), study)
    observer.read_records()
    assert observer.take_snapshot().states["planned"] == study.search.n_trials * study.replicates == observer.total
    observer.total, observer.places = 5, 2
    observer.costs = {"a-r0": 4.0, "b-r0": 4.0}
    observer.add_finished("a-r0", "done", seconds=8.0)
    assert observer.estimate_seconds_left() == (8.0 + 3 * 8.0) / 2  # b, and three that are not suggested yet


def test_events_of_a_driver_give_the_same_snapshot(
    observer: StudyObserver, folder: StudyFolder, study: StudyConfig
) -> None:
    for record in records(folder, study, "bn")[:2]:
        write_failed(record, "MemoryError")
    observer.read_records()
    driven = StudyObserver(folder)
    driven.total, driven.places = 8, 0
    driven.costs = {trial.key: trial.cost for trial in plan_trials(study)}
    for record in records(folder, study, "sn"):
        driven.add_finished(record.key, "done", float((record.read_result() or {})["seconds"]))
    for record in records(folder, study, "bn")[:2]:
        driven.add_failed(record.key, "MemoryError")
    driven.answers = observer.answers
    assert driven.take_snapshot() == observer.take_snapshot()
    driven.places = 2
    assert driven.estimate_seconds_left() is not None


def test_of_trials_in_a_clusters_queue_those_that_started_are_described(
    observer: StudyObserver, folder: StudyFolder, study: StudyConfig
) -> None:
    observer.submitted = True
    observer.running = {trial.key: trial for trial in plan_trials(study) if trial.config.norm == "bn"}
    started = records(folder, study, "bn")[2]
    write_json(started.state, {"state": "running", "job": "12_3"})
    with started.lock():
        snapshot = observer.take_snapshot()
        assert snapshot.running == [describe_running(started, observer.running[started.key])]
    assert snapshot.states["submitted"] == 4
    observer.timed, observer.costs, observer.places = (4, 8.0, 4.0), dict.fromkeys(observer.running, 1.0), 2
    observer.waiting = {"PENDING (Priority)": 3}
    assert observer.take_snapshot().seconds_left is not None
    observer.waiting = {"PENDING (Priority)": 3, "PENDING (JobHeldUser)": 1}
    assert observer.take_snapshot().seconds_left is None
    assert (snapshot.running[0].place, snapshot.running[0].epoch) == ("12_3", None)


@pytest.mark.parametrize("state", ["running", "interrupted"])  # its last attempt was killed, or ended by a signal
def test_a_trial_that_is_started_again_has_no_duration_until_it_runs(
    state: str, folder: StudyFolder, study: StudyConfig
) -> None:
    record = records(folder, study, "bn")[0]
    write_json(record.state, {"state": state, "started": time.time() - 3600, "host": "node7"})
    assert (describe_running(record).seconds, describe_running(record).place) == (None, "")
    with record.lock():  # as `start_attempt` does
        write_json(record.state, {"state": "running", "started": time.time(), "host": "node7"})
        assert describe_running(record).seconds == pytest.approx(0, abs=10)


def test_the_last_epoch_is_that_of_the_last_complete_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_last_epoch(file) is None
    file.write_text("".join(json.dumps({"epoch": n, "name": "x" * 50}) + "\n" for n in range(1000)) + '{"epoch": 10')
    assert read_last_epoch(file) == 999
