"""A study on Slurm: submitted, collected, interrupted, cancelled. Its numbers are those of one machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.contents import SCHEMA_VERSION
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors import slurm as executor_module
from study.sweep.executors.slurm import SlurmExecutor
from study.training.preemption import StopRequest
from tests.conftest import ROOT, Command, Run
from tests.sweep.jobs import build_job, build_jobs

SETTINGS = ("tracking.mode=disabled", "norm=sn", "checkpoint_seconds=0")


def on_slurm(*settings: str) -> tuple[str, ...]:
    settings = (*SETTINGS, "launch.cpus=2", "launch.memory=2G", *settings)
    flags = (part for setting in settings for part in ("--set", setting))
    return ("--study", "depth_vs_batch", "--scale", "smoke", "--launcher", "slurm", *flags)


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# -------------------------------------------------------------------------------------------------------- a real Slurm


@pytest.mark.slurm
@pytest.mark.slow
def test_a_detached_study_is_collected_later_and_has_the_numbers_of_a_local_one(
    slurm: Path, run_study: Run, command: Command, tmp_path: Path, local_numbers: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tests.training.test_resume import all_numbers

    for name, value in {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100"}.items():  # as in a job of the driver's own,
        monkeypatch.setenv(name, value)  # with which srun refuses `launch.memory` in the jobs that it submits
    queued = run_study(*on_slurm("epochs=1", "launch.trials_per_job=2"), "--detach")
    assert queued.returncode == 0, queued.stderr
    assert "2 trials are queued" in queued.stdout
    status = command("status", *on_slurm("epochs=1"), "--out", str(tmp_path / "runs"))
    assert "Slurm job" in status.out
    more = ("epochs=1", "batch_size=[2, 16, 8]")  # one level more, which is all that is submitted
    collected = run_study(*on_slurm(*more))
    assert collected.returncode == 0, collected.stderr
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    states = [read_json(trial.state) for trial in folder.trials()]
    assert {state["attempt"] for state in states} == {1}
    jobs = {state["job"] for state in states}
    assert len(jobs) == 2  # two trials in the first job, one in the second
    assert all(job.startswith("slurm ") for job in jobs)
    assert all_numbers(folder) == local_numbers(*SETTINGS, *more)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_out_of_time_requeues_itself_and_a_cancelled_one_does_not(
    slurm: Path, run_study: Run, tmp_path: Path, local_numbers: Callable[..., dict[str, Any]]
) -> None:
    from tests.training.test_resume import all_numbers

    long = ("batch_size=2", "epochs=16")
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert run_study(*on_slurm(*long), "--detach").returncode == 0
    (job,) = read_json(folder.queue)["slurm"]
    wait_until(lambda: [trial for trial in folder.trials() if trial.is_locked()])
    call("scancel", "--signal=USR2", job)  # as Slurm does before the end of the time limit
    (trial,) = folder.trials()
    wait_until(lambda: read_json(trial.state)["state"] == "interrupted")
    wait_until(lambda: read_json(trial.state)["attempt"] == 2 and trial.is_locked())  # in the requeued job
    call("scancel", job)
    wait_until(lambda: job not in call("squeue", "--noheader", "--format=%i"))
    assert not trial.result.exists()
    assert "not requeued" in next(folder.jobs.glob(f"{job}*.out")).read_text()
    assert run_study(*on_slurm(*long)).returncode == 0
    assert read_json(trial.result)["attempts"] == 3
    assert all_numbers(folder) == local_numbers(*SETTINGS, *long)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_trial_over_two_nodes_has_the_numbers_of_one_machine(
    slurm: Path, run_study: Run, tmp_path: Path, local_numbers: Callable[..., dict[str, Any]]
) -> None:
    from tests.training.test_resume import all_numbers

    settings = ("batch_size=2", "chunks=2", "epochs=1", "dropout=0.2", "run.devices_per_trial=2")
    loopback = 'launch.setup=["export MASTER_ADDR=127.0.0.1"]'  # Slurm's names of these nodes are no host names
    done = run_study(*on_slurm(*settings, "launch.nodes=2", loopback))
    assert done.returncode == 0, done.stderr
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert len(list(folder.jobs.glob("*_log.out"))) == 2  # one per node
    assert all_numbers(folder) == local_numbers(*SETTINGS, *settings)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("launch", "complaint"),
    [
        ({"partition": "mian"}, "launch.partition=mian: .* nearest: main"),
        ({"minutes": 100_000}, "launch.minutes=100000: .* partition main"),
        ({"gpus": 0.5}, "launch.gpus=0.5: .* whole GPUs"),
        ({"memory": "900G"}, "Slurm refuses the jobs"),
        ({"sbatch": {"frobnicate": 1}}, "Slurm refuses the jobs: .*frobnicate"),
    ],
)
def test_what_slurm_cannot_give_is_an_error(
    slurm: Path, tmp_path: Path, launch: dict[str, Any], complaint: str
) -> None:
    folder = StudyFolder(tmp_path)
    with pytest.raises(UserError, match=complaint) as caught:
        SlurmExecutor(folder, LaunchConfig(**launch), RunConfig()).submit(build_jobs(folder, 1))
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- a fake Slurm


RESULT = {"schema": SCHEMA_VERSION, "status": "done", "metrics": {}, "files": {}}


class FakeSlurm:
    """Answers Slurm's commands; `queue` is the output of squeue, None if Slurm does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: str | None = ""
        self.submitted: list[list[str]] = []
        self.dependencies: list[Any] = []
        monkeypatch.setattr(executor_module, "_call", self.call)
        monkeypatch.setattr(executor_module, "_submit", self.submit)
        monkeypatch.setattr(executor_module, "QUEUE_POLL_SECONDS", 0.0)
        monkeypatch.setattr(executor_module.shutil, "which", lambda name: name)

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
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(monkeypatch)


@pytest.mark.parametrize(
    ("launch", "complaint"),
    [
        ({"partition": "low", "minutes": 1451}, "launch.minutes=1451: allowed in partition low: 1 to 1450 minutes"),
        ({"partition": "low", "sbatch": {"time": "1-01:00:00"}}, "launch.sbatch.time=1-01:00:00: .* low: 1 to 1450"),
        ({"partition": "low", "sbatch": {"time": 1451}}, "launch.sbatch.time=1451: allowed"),
        ({"partition": "low", "sbatch": {"time": 0}}, "launch.sbatch.time=0: allowed"),
        ({"sbatch": {"time": "1500:00", "partition": "low"}}, "launch.sbatch.time=1500:00: allowed in partition low"),
        ({"sbatch": {"partition": "lo"}}, "launch.sbatch.partition=lo: no such partition; .* nearest: low"),
        ({"sbatch": {"time": "noon"}}, "launch.sbatch.time=noon: not a time limit; allowed: MINUTES"),
        ({"sbatch": {"time": "-5"}}, "launch.sbatch.time=-5: not a time limit"),
        ({"cpus": 0.5}, "launch.cpus=0.5: Slurm allocates whole cores"),
        ({"launcher": "slurm", "nodes": 2}, "launch.nodes=2: must divide run.devices_per_trial=1"),
        ({"minutes": 1}, "launch.warning_seconds=60: allowed with launch.minutes=1: 1 to 30 seconds"),
        ({"sbatch": {"time": "1:00"}, "warning_seconds": 31}, "allowed with launch.sbatch.time=1:00: 1 to 30 seconds"),
    ],
)
def test_a_job_is_checked_with_the_time_and_partition_that_slurm_will_use(
    fake: FakeSlurm, launch: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        executor_module.check_slurm(LaunchConfig(**launch), RunConfig())


def test_times_under_sbatch_replace_the_minutes(fake: FakeSlurm) -> None:
    settings = ["launch.partition=low", "launch.minutes=9999", "launch.sbatch={time: 12:00:00, account: '0512'}"]
    launch = load_study("depth_vs_batch", "smoke", settings).launch
    assert launch.sbatch == {"time": "12:00:00", "account": "0512"}
    executor_module.check_slurm(launch, RunConfig())


def test_trials_are_packed_into_jobs_and_jobs_into_arrays_that_slurm_allows(fake: FakeSlurm, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    executor = SlurmExecutor(folder, LaunchConfig(trials_per_job=2), RunConfig())
    jobs = build_jobs(folder, 9)
    fake.queue = None  # jobs stay in queue.json while Slurm does not answer
    executor.submit(jobs)
    assert [len(array) for array in fake.submitted] == [3, 2]
    assert " ".join(batch for array in fake.submitted for batch in array).split() == [job.trial.key for job in jobs]
    queued = read_json(folder.queue)["slurm"]
    assert sorted(key for keys in queued.values() for key in keys) == sorted(job.trial.key for job in jobs)


def test_jobs_depend_on_those_of_their_start_trials_only(fake: FakeSlurm, tmp_path: Path) -> None:
    settings = ["norm=bn", "batch_size=2", "factors.start_rule=[fine_tune, scratch]"]
    folder = StudyFolder(tmp_path)
    trials = plan_trials(load_study("depth_vs_batch", "smoke", settings))
    others = build_jobs(folder, 2)
    executor = SlurmExecutor(folder, LaunchConfig(sbatch={"dependency": "singleton"}), RunConfig())
    executor.submit([*(build_job(trial, folder) for trial in trials), *others])
    tune, scratch = (trial.key for trial in trials)
    assert fake.submitted == [[scratch], [job.trial.key for job in others], [tune]]
    assert fake.dependencies == ["singleton", "singleton", "singleton,afterany:1"]


def test_a_job_that_left_the_queue_ends_its_trials(fake: FakeSlurm, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    executor = SlurmExecutor(folder, LaunchConfig(), RunConfig())
    first, second = build_jobs(folder, 2)
    executor.submit([first, second])
    fake.queue = "1_0|RUNNING|None|node1\n1_1|PENDING|Resources|\n"
    assert executor.wait(0) == {}
    fake.queue = None  # Slurm does not answer: that ends no trial
    assert executor.wait(0) == {}
    log = folder.jobs / "1_0_0_log.out"
    log.parent.mkdir()
    log.touch()
    fake.queue = "1_1|PENDING|Resources|\n"
    assert executor.wait(0) == {first.trial.key: f"ended with Slurm job 1_0 ({tmp_path}/jobs/1_0_*.out)"}
    fake.queue = "1_1|RUNNING|None|node1\n"
    write_json(second.folder / "result.json", {**RESULT, "files": {"metrics.jsonl": {"bytes": 7}}})
    assert executor.wait(0) == {}  # a damaged record, which the job is about to replace
    write_json(second.folder / "result.json", RESULT)
    assert executor.wait(0) == {second.trial.key: "has a result"}
    fake.queue = ""
    assert executor.wait(0) == {}


# What squeue of Slurm 22.05 prints; the third job is about to end.
QUEUE = """\
1_0|CANCELLED|None|n1
1_1|PENDING|launch failed requeued held|
1_2|COMPLETING|None|n1
2_0|PENDING|JobHeldUser|
2_1|PENDING|Priority|
2_2|OUT_OF_MEMORY|OutOfMemory|n2
"""


def test_cancelled_and_held_jobs_are_told_apart_from_those_that_ended(fake: FakeSlurm, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    executor = SlurmExecutor(folder, LaunchConfig(), RunConfig())
    jobs = build_jobs(folder, 6)
    fake.queue = None
    executor.submit(jobs)
    keys = [job.trial.key for job in jobs]
    fake.queue = QUEUE
    assert executor.wait(0) == {
        keys[0]: "was cancelled with Slurm job 1_0",
        keys[5]: f"ended with Slurm job 2_2 (OUT_OF_MEMORY, {tmp_path}/jobs/2_2_*.out)",
    }
    assert executor.count_waiting() == {
        "PENDING (launch failed requeued held); to let it run: `scontrol release JOB`": 1,
        "PENDING (JobHeldUser); to let it run: `scontrol release JOB`": 1,
        "PENDING (Priority)": 1,
    }
    fake.queue = QUEUE.replace("2_1|PENDING|Priority|\n", "")  # a task of an array that never started
    assert executor.wait(0) == {keys[4]: "was cancelled with Slurm job 2_1"}
    fake.queue = QUEUE
    later = SlurmExecutor(folder, LaunchConfig(), RunConfig())
    assert later.reattach(keys) == {*keys[1:5]}
    fake.queue = QUEUE.replace("COMPLETING", "CANCELLED")  # before this driver started
    assert later.wait(0) == {keys[2]: f"ended with Slurm job 1_2 (CANCELLED, {tmp_path}/jobs/1_2_*.out)"}


def test_a_second_driver_reattaches_to_queued_trials(fake: FakeSlurm, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    first, second = build_jobs(folder, 2)
    SlurmExecutor(folder, LaunchConfig(), RunConfig()).submit([first, second])
    fake.queue = "1_1|PENDING|Resources|\n"
    executor = SlurmExecutor(folder, LaunchConfig(), RunConfig())
    assert executor.reattach([first.trial.key, second.trial.key, "other-r0"]) == {second.trial.key}
    assert executor.wait(0) == {}
    fake.queue = ""
    assert list(executor.wait(0)) == [second.trial.key]


def stop(jobs: Any, launch: LaunchConfig, stop_request: StopRequest, **_: Any) -> None:
    stop_request.handle(signal.SIGUSR2)


def stop_and_fail(*arguments: Any, **_: Any) -> None:
    stop(*arguments)
    raise EOFError


@pytest.mark.parametrize(
    ("state", "restarts", "work", "finished", "requeued"),  # finished: the trial has a result
    [
        ("RUNNING", 0, stop, False, True),
        ("RUNNING", 1, stop, False, True),
        ("RUNNING", 2, stop, False, False),  # launch.requeues reached
        ("COMPLETING", 0, stop, False, False),  # preempted, which Slurm requeues itself, or cancelled
        ("", 0, stop, False, False),
        ("RUNNING", 0, stop, True, False),
        ("RUNNING", 0, stop_and_fail, False, True),
        ("RUNNING", 0, lambda *_, **__: None, False, False),  # its trial was given up
        ("RUNNING", 0, "locked", False, True),  # by a process on a node that has died
    ],
)
def test_an_interrupted_job_requeues_itself_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    state: str,
    restarts: int,
    work: Callable[..., None] | str,
    finished: bool,
    requeued: bool,
) -> None:
    calls: list[tuple[str, ...]] = []

    def call(*command: str) -> str:
        calls.append(command)
        return f"{state}\n"

    monkeypatch.setattr(executor_module, "_call", call)
    monkeypatch.setattr(executor_module, "work", work if callable(work) else lambda *_, **__: None)
    for name, value in {"ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 3, "RESTART_COUNT": restarts}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    (job,) = build_jobs(StudyFolder(tmp_path), 1)
    if finished:
        write_json(job.folder / "result.json", RESULT)
    with TrialFolder(job.folder).lock() if work == "locked" else nullcontext():
        executor_module._run_batch([job], LaunchConfig(requeues=2))
    assert (("scontrol", "requeue", "7_3") in calls) == requeued


def test_a_first_node_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NODEID": "1", "SLURM_JOB_ID": "7", "MASTER_ADDR": "n1.invalid"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"launch.nodes: no address of n1.invalid: .*MASTER_ADDR="):
        executor_module._find_rendezvous(LaunchConfig(nodes=2))


def test_a_signal_that_arrives_while_a_job_starts_is_handled_later() -> None:
    """A process that sends itself the warning before it handles any, as Slurm may during its imports."""
    code = (
        "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)\n"
        "from study.training.preemption import handle_signals\n"
        "with handle_signals() as stop_request: print(stop_request.signal)"
    )
    started = subprocess.run(
        [sys.executable, "-ISc", executor_module._BLOCK_SIGNALS, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert (started.stdout, started.stderr) == ("SIGUSR2\n", "")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", float("inf")),
        ("1:00:00", 60),
        ("30:00", 30),
        ("2-00:30:00", 2910),
        ("10", 10),
        ("1-2", 1560),
        ("1-2:30", 1590),
        ("0", float("inf")),
        ("UNLIMITED", float("inf")),
    ],
)
def test_time_limits_are_parsed(text: str, minutes: float) -> None:
    assert executor_module._parse_minutes(text) == pytest.approx(minutes)


def test_without_slurm_the_command_ends_before_it_writes_anything(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = command(*on_slurm(), "--out", str(tmp_path / "runs"))
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "no sbatch on this machine" in refused.err
    assert not (tmp_path / "runs").exists()


def test_a_slurm_that_does_not_answer_is_an_error(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*command: str) -> str:
        raise subprocess.CalledProcessError(1, command, stderr="slurm_load_partitions: Unable to contact controller\n")

    monkeypatch.setattr(executor_module, "_call", fail)
    with pytest.raises(UserError, match="does not answer: slurm_load_partitions: Unable to contact"):
        executor_module.check_slurm(LaunchConfig(), RunConfig())
