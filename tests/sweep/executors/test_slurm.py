"""A study on Slurm: queued, collected, warned, cancelled; the numbers are those of this machine alone."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig
from study.record.io import read_json, write_json
from study.record.layout import SCHEMA, StudyFolder
from study.sweep.executors import slurm as engine
from tests.conftest import Run
from tests.training.test_resume import all_numbers

STUDY = ("--study", "depth_vs_batch", "--scale", "smoke", "--set", "tracking.mode=disabled", "--set", "norm=sn",
         "--set", "checkpoint_seconds=0")  # fmt: skip
ON_SLURM = ("--launcher", "slurm", "--set", "launch.cpus=2", "--set", "launch.memory=2G")


def on_slurm(*settings: str) -> tuple[str, ...]:
    return (*STUDY, *ON_SLURM, *(part for setting in settings for part in ("--set", setting)))


def wait_until(true: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --------------------------------------------------------------------------------------------- a real Slurm


@pytest.mark.slurm
@pytest.mark.slow
def test_a_detached_study_is_collected_later_and_has_the_numbers_of_a_local_one(
    slurm: Path, run_study: Run, tmp_path: Path
) -> None:
    queued = run_study(*on_slurm("epochs=1", "launch.trials_per_job=2"), "--detach")
    assert queued.returncode == 0, queued.stderr
    assert "2 trials are queued" in queued.stdout
    status = run_study("status", *on_slurm("epochs=1"))
    assert "Slurm job" in status.stdout
    collected = run_study(*on_slurm("epochs=1", "batch_size=[2, 16, 8]"))  # a level more: only that is new
    assert collected.returncode == 0, collected.stderr
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    on_cluster = all_numbers(folder)
    assert len(on_cluster) == 3
    assert {read_json(trial.state)["attempt"] for trial in folder.trials()} == {1}
    jobs = {read_json(trial.state)["job"] for trial in folder.trials()}
    assert len(jobs) == 2  # two trials of the first job, one of the second
    assert all(job.startswith("slurm ") for job in jobs)
    shutil.rmtree(folder.path)
    assert run_study(*STUDY, "--set", "epochs=1", "--set", "batch_size=[2, 16, 8]").returncode == 0
    assert all_numbers(folder) == on_cluster


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_out_of_time_goes_on_in_its_next_life_and_a_cancelled_one_does_not(
    slurm: Path, run_study: Run, tmp_path: Path
) -> None:
    long = ("batch_size=2", "epochs=16")
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert run_study(*on_slurm(*long), "--detach").returncode == 0
    (job,) = read_json(folder.queue)["slurm"]
    wait_until(lambda: [trial for trial in folder.trials() if trial.is_locked()])
    said("scancel", "--signal=USR2", job)  # as Slurm does before the end of the time limit
    (trial,) = folder.trials()
    wait_until(lambda: read_json(trial.state)["state"] == "interrupted")
    wait_until(lambda: read_json(trial.state)["attempt"] == 2 and trial.is_locked())  # in the job's second life
    said("scancel", job)
    wait_until(lambda: job not in said("squeue", "--noheader", "--format=%i"))
    assert not trial.result.exists()
    assert "not requeued" in next(folder.jobs.glob(f"{job}*.out")).read_text()
    assert run_study(*on_slurm(*long)).returncode == 0
    after = all_numbers(folder)
    assert read_json(trial.result)["attempts"] == 3
    shutil.rmtree(folder.path)
    assert run_study(*STUDY, *(part for setting in long for part in ("--set", setting))).returncode == 0
    assert all_numbers(folder) == after


@pytest.mark.slurm
def test_what_slurm_cannot_give_is_one_line(slurm: Path, run_study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, parts in {
        "launch.partition=mian": ["launch.partition=mian", "nearest: main"],
        "launch.minutes=100000": ["launch.minutes=100000", "partition main"],
        "launch.gpus=0.5": ["launch.gpus=0.5", "whole GPUs"],
        "launch.memory=900G": ["Slurm refuses the jobs"],
        "launch.sbatch={frobnicate: 1}": ["Slurm refuses the jobs", "frobnicate"],
    }.items():
        refused = run_study(*on_slurm(setting))
        assert refused.returncode == 2, setting
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert all(part in refused.stderr for part in parts), refused.stderr


# ------------------------------------------------------------------------------------------------- its rules


RESULT = {"schema": SCHEMA, "status": "done", "metrics": {}, "files": {}}


class Slurm:
    """Slurm's answers, made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: str | None = ""
        self.submitted: list[list[str]] = []
        self.dependencies: list[Any] = []
        monkeypatch.setattr(engine, "_call", self.call)
        monkeypatch.setattr(engine, "_submit", self.submit)
        monkeypatch.setattr(engine, "QUEUE_POLL_SECONDS", 0.0)
        monkeypatch.setattr(engine.shutil, "which", lambda name: name)

    def call(self, *command: str) -> str:
        if command[0] == "squeue":
            if self.queue is None:
                raise subprocess.CalledProcessError(1, command, stderr="Unable to contact slurm controller")
            return self.queue
        return {"sinfo": "main infinite main*\nlow 1-00:10:00 low\n", "scontrol": "MaxArraySize = 4\n"}[command[0]]

    def submit(self, batches: Any, folder: Any, launch: LaunchConfig) -> list[str]:
        self.dependencies.append(launch.sbatch.get("dependency"))
        self.submitted.append([" ".join(job.trial.key for job in batch) for batch in batches])
        return [f"{len(self.submitted)}_{task}" for task in range(len(batches))]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


def jobs(tmp_path: Path, count: int) -> list[Any]:
    from study.bench.speed.trial import make_job
    from study.plan.loading import load_study
    from study.plan.trials import plan_trials

    study = load_study("depth_vs_batch", "laptop")
    folder = StudyFolder(tmp_path)
    return [make_job(trial, folder.trial(trial.trial_id, trial.replicate).path, threads=1)
            for trial in plan_trials(study)[:count]]  # fmt: skip


def test_trials_are_packed_into_jobs_and_jobs_into_arrays_that_slurm_allows(fake: Slurm, tmp_path: Path) -> None:
    executor = engine.SlurmExecutor(StudyFolder(tmp_path), LaunchConfig(trials_per_job=2), RunConfig())
    every = jobs(tmp_path, 9)
    fake.queue = None  # jobs that Slurm says nothing of are not forgotten
    executor.submit(every)
    assert [len(array) for array in fake.submitted] == [3, 2]
    assert " ".join(batch for array in fake.submitted for batch in array).split() == [job.trial.key for job in every]
    noted = read_json(StudyFolder(tmp_path).queue)["slurm"]
    assert sorted(key for keys in noted.values() for key in keys) == sorted(job.trial.key for job in every)


def test_jobs_that_start_from_others_are_queued_behind_these_alone(fake: Slurm, tmp_path: Path) -> None:
    from study.bench.speed.trial import make_job
    from study.plan.loading import load_study
    from study.plan.trials import plan_trials

    settings = ["norm=bn", "batch_size=2", "factors.start_rule=[fine_tune, scratch]"]
    starts = plan_trials(load_study("depth_vs_batch", "smoke", settings))
    others = jobs(tmp_path, 2)
    every = [make_job(trial, StudyFolder(tmp_path).trial(trial.trial_id, 0).path, threads=1) for trial in starts]
    executor = engine.SlurmExecutor(
        StudyFolder(tmp_path), LaunchConfig(sbatch={"dependency": "singleton"}), RunConfig()
    )
    executor.submit([*every, *others])
    tune, scratch = (trial.key for trial in starts)
    assert fake.submitted == [[scratch], [job.trial.key for job in others], [tune]]
    assert fake.dependencies == ["singleton", "singleton", "singleton,afterany:1"]


def test_a_job_that_is_gone_ends_its_trials_and_a_slurm_that_is_silent_ends_none(fake: Slurm, tmp_path: Path) -> None:
    executor = engine.SlurmExecutor(StudyFolder(tmp_path), LaunchConfig(), RunConfig())
    first, second = jobs(tmp_path, 2)
    executor.submit([first, second])
    fake.queue = "1_0|RUNNING|None|node1\n1_1|PENDING|Resources|\n"
    assert executor.wait(0) == {}
    fake.queue = None
    assert executor.wait(0) == {}
    fake.queue = "1_1|PENDING|Resources|\n"
    (gone,) = executor.wait(0).items()
    assert gone[0] == first.trial.key
    assert gone[1] == f"ended with Slurm job 1_0 ({tmp_path}/jobs/1_0_*.out)"
    fake.queue = "1_1|RUNNING|None|node1\n"
    write_json(second.folder / "result.json", {**RESULT, "files": {"metrics.jsonl": {"bytes": 7}}})
    assert executor.wait(0) == {}  # damaged: that is why it is queued
    write_json(second.folder / "result.json", RESULT)
    assert executor.wait(0) == {second.trial.key: "has a result"}
    fake.queue = ""
    assert executor.wait(0) == {}


def test_a_second_driver_adopts_what_is_queued(fake: Slurm, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    first, second = jobs(tmp_path, 2)
    engine.SlurmExecutor(folder, LaunchConfig(), RunConfig()).submit([first, second])
    fake.queue = "1_1|PENDING|Resources|\n"
    executor = engine.SlurmExecutor(folder, LaunchConfig(), RunConfig())
    assert executor.reattach([first.trial.key, second.trial.key, "other-r0"]) == {second.trial.key}
    assert executor.wait(0) == {}
    fake.queue = ""
    assert list(executor.wait(0)) == [second.trial.key]


@pytest.mark.parametrize(
    ("state", "lives", "finished", "requeued"),
    [
        ("RUNNING", 0, False, True),
        ("RUNNING", 1, False, True),
        ("RUNNING", 2, False, False),  # the cap
        ("COMPLETING", 0, False, False),  # Slurm requeues what it preempts, and nobody what a user cancels
        ("", 0, False, False),
        ("RUNNING", 0, True, False),
    ],
)
def test_a_job_that_was_asked_to_leave_requeues_itself_up_to_a_cap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, lives: int, finished: bool, requeued: bool
) -> None:
    calls: list[tuple[str, ...]] = []

    def call(*command: str) -> str:
        calls.append(command)
        return f"{state}\n"

    monkeypatch.setattr(engine, "_call", call)
    monkeypatch.setattr(engine, "work", lambda *_, **__: True)
    for name, value in {"ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 3, "RESTART_COUNT": lives}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    (job,) = jobs(tmp_path, 1)
    if finished:
        write_json(job.folder / "result.json", RESULT)
    engine._run_batch([job], LaunchConfig(requeues=2))
    assert (("scontrol", "requeue", "7_3") in calls) == requeued


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", float("inf")), ("1:00:00", 60), ("30:00", 30), ("2-00:30:00", 2910), ("10", 1 / 6)],
)
def test_time_limits_are_read(text: str, minutes: float) -> None:
    assert engine._parse_minutes(text) == pytest.approx(minutes)


def test_without_slurm_it_is_one_line(run_study: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = run_study(*on_slurm())
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "no sbatch on this machine" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_slurm_that_does_not_answer_is_one_line(fake: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*command: str) -> str:
        raise subprocess.CalledProcessError(1, command, stderr="slurm_load_partitions: Unable to contact controller\n")

    monkeypatch.setattr(engine, "_call", silent)
    with pytest.raises(UserError, match="does not answer: slurm_load_partitions: Unable to contact"):
        engine.check_slurm(LaunchConfig(), RunConfig())
