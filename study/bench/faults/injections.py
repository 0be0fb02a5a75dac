"""The faults. Each is a function that injects it into a study while trials train, and returns the affected trials."""

from __future__ import annotations

import os
import platform
import random
import shlex
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from study.bench.faults.harness import NotPossibleError, RunningTrial, StudyFinishedError, StudyHarness
from study.config.errors import INTERRUPTED
from study.record.layout import TrialFolder

AffectedTrials = list[TrialFolder]
Inject = Callable[[StudyHarness], AffectedTrials]
Corrupt = Callable[[bytes, random.Random], bytes]  # the content of a file -> its content after the fault
START_SECONDS = 5.0  # in which a job or a driver imports what it needs, before trials train
LOCKED_SECONDS = 10.0  # longer than SQLite waits for a lock
FULL_DISK_SECONDS = 120.0  # time in which a run must end on a full disk
NODE_MEMORY = 80_000_000  # bytes of a Ray node's object store
TRACEBACK = "Traceback (most recent call last)"


# ------------------------------------------------------------------------------------------------- processes


def kill_driver(study: StudyHarness) -> AffectedTrials:
    """Kills the driver alone. Its trials end with it on this machine, and continue under Slurm."""
    trials = study.wait_for_moment()
    study.signal_driver(signal.SIGKILL)
    return _to_records(trials)


def interrupt_driver(study: StudyHarness, number: int) -> AffectedTrials:
    """Sends the driver a signal that asks it to end: SIGINT (Ctrl-C) or SIGTERM."""
    trials = study.wait_for_moment()
    code = study.signal_driver(number)
    if code != INTERRUPTED:
        name = signal.Signals(number).name
        study.problems.append(f"{name}: exit code {code}, not {INTERRUPTED}: {study.last_line()}")
    return _to_records(trials)


def interrupt_starting_driver(study: StudyHarness) -> AffectedTrials:
    """Starts a driver again, and sends SIGINT to it and its forkserver before trials train, as a terminal does."""
    trials = study.wait_for_moment()
    study.kill_all()
    driver = study.ensure_driver()
    time.sleep(study.settings.rng.uniform(0.5, START_SECONDS))
    os.killpg(driver.pid, signal.SIGINT)
    code, study.driver = driver.wait(study.settings.timeout), None
    if code != INTERRUPTED:
        study.problems.append(f"SIGINT at the start: exit code {code}, not {INTERRUPTED}: {study.last_line()}")
    return _to_records(trials)


def stop_driver(study: StudyHarness) -> AffectedTrials:
    """Stops the driver for a while, as a suspended laptop or a debugger does."""
    trials = study.wait_for_moment()
    _stop_process(study.ensure_driver().pid, study.settings.stop_seconds)
    return _to_records(trials)


def signal_trial(study: StudyHarness, number: int) -> AffectedTrials:
    """Sends a signal to the process of one trial."""
    trial = _choose_local_trial(study)
    os.kill(trial.pid, number)
    return [trial.record]


def stop_trial(study: StudyHarness) -> AffectedTrials:
    """Stops the process of one trial for a while."""
    trial = _choose_local_trial(study)
    _stop_process(trial.pid, study.settings.stop_seconds)
    return [trial.record]


def kill_ancestor(study: StudyHarness, generations: int) -> AffectedTrials:
    """Kills the parent of a trial's process, which is a forkserver (1), or its grandparent, a worker (2)."""
    pid = _choose_local_trial(study).pid
    for _ in range(generations):
        pid = _find_parent(pid)
    trials = [trial for trial in study.find_running_trials() if trial.host == platform.node()]
    os.kill(pid, signal.SIGKILL)
    return _to_records(trials)


def start_two_drivers(study: StudyHarness) -> AffectedTrials:
    """Starts two drivers at once. One must end with a one-line error, and the other must run the study."""
    trials = study.wait_for_moment()
    study.kill_all()
    first = len(study.started)
    drivers = [study.start(), study.start()]
    study.wait_for(lambda: any(driver.poll() is not None for driver in drivers), "two drivers run")
    refused = 0 if drivers[0].poll() is not None else 1
    output = study.log(first + refused).read_text().strip().splitlines()
    if drivers[refused].returncode != 2 or len(output) != 1:
        study.problems.append(f"the second driver ended with exit code {drivers[refused].returncode}: {output[-1:]}")
    study.driver = drivers[1 - refused]
    return _to_records(trials)


# ---------------------------------------------------------------------------------------------------- files


def damage_checkpoint(study: StudyHarness, corrupt: Corrupt) -> AffectedTrials:
    """Kills a trial and damages its last checkpoint before the trial is restarted."""
    driver = study.ensure_driver()
    trial = study.settings.rng.choice(
        _select_local(study.wait_for_moment(lambda record: record.last_checkpoint.exists()))
    )  # fmt: skip
    driver.send_signal(signal.SIGSTOP)
    try:
        os.kill(trial.pid, signal.SIGKILL)
        study.wait_for(lambda: not trial.record.is_locked(), "a killed trial is still running")
        _damage_file(trial.record.last_checkpoint, corrupt, study)
    finally:
        driver.send_signal(signal.SIGCONT)
    return [trial.record]


def damage_record(study: StudyHarness, name: str) -> AffectedTrials:
    """Damages a file of a finished trial after the study has ended; the next run must repair it.

    Several such faults in a row damage files between the same two runs.
    """
    if not study.finished:
        study.run_to_end()
    intact = [record for record in study.folder.trials() if record.read_result() and not record.damaged_files()]
    if not intact:
        raise StudyFinishedError
    record = study.settings.rng.choice(intact)
    _damage_file(record.path / name, truncate, study)
    return [record]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cuts off a random number of bytes at the end, but not all."""
    return data[: rng.randrange(1, len(data))]


def remove_all(data: bytes, rng: random.Random) -> bytes:
    """Returns an empty content."""
    return b""


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    """Flips one random bit."""
    index = rng.randrange(len(data))
    return data[:index] + bytes([data[index] ^ 1 << rng.randrange(8)]) + data[index + 1 :]


def fill_disk(study: StudyHarness) -> AffectedTrials:
    """Fills the disk until the driver ends, which it must do with one clear line. Then frees the space."""
    trials = study.wait_for_moment()
    driver, start = study.ensure_driver(), len(study.started) - 1
    ballast = study.path / "ballast"
    try:
        _write_until_full(ballast)
        code = driver.wait(FULL_DISK_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
        study.kill_all()
    finally:
        ballast.unlink()
    study.driver = None
    output, last_line = study.log(start).read_text(), study.last_line()
    if code is None:
        study.problems.append(f"a run did not end within {FULL_DISK_SECONDS:g} s of a full disk: {last_line}")
    elif code == 0 and not study.folder.report.exists():
        study.problems.append("a run ended with exit code 0 on a full disk, without a report")
    elif code and (TRACEBACK in output or "space" not in output):
        study.problems.append(f"a run on a full disk ended with exit code {code} and no clear line: {last_line}")
    return _to_records(trials)


# ------------------------------------------------------------------------------------------------- services


def lock_storage(study: StudyHarness) -> AffectedTrials:
    """Locks the SQLite file for a while, as a database browser could: while trials end, or while a driver starts."""
    if study.settings.storage is not None:
        raise NotPossibleError("--storage is not the study's own SQLite file")
    trials = study.wait_for_moment()
    if study.settings.rng.random() < 0.5:
        study.kill_all()
    with sqlite3.connect(study.folder.storage, isolation_level=None, timeout=LOCKED_SECONDS) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        deadline = time.monotonic() + LOCKED_SECONDS
        while time.monotonic() < deadline:
            if study.driver is None:
                study.ensure_driver()
            time.sleep(0.1)
        connection.execute("ROLLBACK")
    return _to_records(trials)


def restart_storage(study: StudyHarness) -> AffectedTrials:
    """Restarts the server of the storage with the command that the user gave for it."""
    if study.settings.restart_storage is None:
        raise NotPossibleError("needs --storage URL and --restart-storage COMMAND")
    trials = study.wait_for_moment()
    subprocess.run(shlex.split(study.settings.restart_storage), check=True, capture_output=True, text=True)  # noqa: S603
    return _to_records(trials)


def disconnect_wandb(study: StudyHarness) -> AffectedTrials:
    """Restarts the study with a W&B login for an address without a server. Trials must train without W&B."""
    study.wait_for_moment()
    study.kill_all()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again after this block: nothing listens there
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    study.driver = study.start("--set", "tracking.mode=auto", environment=environment)
    affected = _to_records(study.wait_for_moment())
    # Only the trials that train now have to end without W&B.
    with suppress(StudyFinishedError):
        study.wait_for(
            lambda: bool(study.ensure_driver()) and all(record.read_result() for record in affected),
            "trials train without W&B",
        )
    study.kill_all()
    return affected


# ---------------------------------------------------------------------------------------------------- Slurm


def call_slurm(study: StudyHarness, *command: str) -> AffectedTrials:
    """Runs a Slurm command on the job of one trial that trains."""
    trials, job = _choose_job(study)
    _call(*command, job)
    return trials


def cancel_job(study: StudyHarness) -> AffectedTrials:
    """Cancels the job of one trial, which stays cancelled until the command is run again."""
    affected = call_slurm(study, "scancel")
    study.signal_driver(signal.SIGINT)
    return affected


def warn_starting_job(study: StudyHarness) -> AffectedTrials:
    """Requeues the job of one trial, and warns it of its time limit while it starts again, as a short limit would."""
    trials, job = _choose_job(study)
    states = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    _call("scontrol", "requeue", job)
    study.wait_for(lambda: _call(*states).strip() == "PENDING", "a job is not requeued")
    study.wait_for(lambda: _call(*states).strip() == "RUNNING", "a requeued job does not start")
    time.sleep(study.settings.rng.uniform(0, START_SECONDS))
    _call("scancel", "--signal=USR2", job)
    return trials


def detach_driver(study: StudyHarness) -> AffectedTrials:
    """Kills the driver and starts a detached one; a later driver collects the results."""
    trials = study.wait_for_moment()
    study.signal_driver(signal.SIGKILL)
    code = study.start("--detach").wait()
    if code != 0:
        study.problems.append(f"--detach ended with exit code {code}: {study.last_line()}")
    return _to_records(trials)


# ------------------------------------------------------------------------------------------------------ Ray


def kill_node(study: StudyHarness) -> AffectedTrials:
    """Kills a Ray node on which a trial trains, without a graceful shutdown; a new node joins."""
    cluster = study.settings.cluster
    if cluster is None:
        raise NotPossibleError("would kill a node of your cluster")
    nodes = {f"ray node {node.node_id[:8]}": node for node in cluster.worker_nodes}  # without the head

    def is_on_worker_node(record: TrialFolder) -> bool:
        return record.read_state().get("job") in nodes

    trials = study.wait_for_moment(is_on_worker_node)
    cluster.remove_node(nodes[trials[0].job], allow_graceful=False)
    add_ray_node(cluster)
    return [trial.record for trial in trials if trial.job == trials[0].job]


# ------------------------------------------------------------------------------------------- faults by launcher

_TERM, _INT, _KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
LOCAL: Mapping[str, Inject] = {
    "kill-trial": partial(signal_trial, number=_KILL),
    "term-trial": partial(signal_trial, number=_TERM),
    "stop-trial": stop_trial,
    "kill-forkserver": partial(kill_ancestor, generations=1),
    "truncate-checkpoint": partial(damage_checkpoint, corrupt=truncate),
    "empty-checkpoint": partial(damage_checkpoint, corrupt=remove_all),
    "flip-checkpoint": partial(damage_checkpoint, corrupt=flip_bit),
    "kill-driver": kill_driver,
    "term-driver": partial(interrupt_driver, number=_TERM),
    "interrupt-driver": partial(interrupt_driver, number=_INT),
    "interrupt-starting-driver": interrupt_starting_driver,
    "stop-driver": stop_driver,
    "two-drivers": start_two_drivers,
    "lock-storage": lock_storage,
    "restart-storage": restart_storage,
    "cut-off-wandb": disconnect_wandb,
    "truncate-metrics": partial(damage_record, name="metrics.jsonl"),
    "truncate-switch-weights": partial(damage_record, name="switch_weights.parquet"),
    "truncate-result": partial(damage_record, name="result.json"),
    "fill-disk": fill_disk,
    "fill-disk-again": fill_disk,
}
SLURM: Mapping[str, Inject] = {
    "kill-job": lambda study: call_slurm(study, "scancel", "--signal=KILL"),
    "cancel-job": cancel_job,
    "warn-job": lambda study: call_slurm(study, "scancel", "--signal=USR2"),
    "warn-starting-job": warn_starting_job,
    "term-job": lambda study: call_slurm(study, "scancel", "--signal=TERM"),
    "requeue-job": lambda study: call_slurm(study, "scontrol", "requeue"),
    "kill-driver": kill_driver,
    "interrupt-driver": partial(interrupt_driver, number=_INT),
    "detach": detach_driver,
}
RAY: Mapping[str, Inject] = {
    "kill-trial": partial(signal_trial, number=_KILL),
    "kill-worker": partial(kill_ancestor, generations=2),
    "kill-driver": kill_driver,
    "kill-node": kill_node,
}
FAULTS: dict[str, Mapping[str, Inject]] = {"local": LOCAL, "slurm": SLURM, "ray": RAY}
NEEDS_SMALL_DISK = ("fill-disk", "fill-disk-again")


# ------------------------------------------------------------------------------------------------------ helpers


def add_ray_node(cluster: Any) -> None:
    """Adds a node for one trial at a time. The first one is the head."""
    extra = {} if cluster.head_node else {"include_dashboard": False}
    cluster.add_node(num_cpus=1, object_store_memory=NODE_MEMORY, **extra)


def _to_records(trials: list[RunningTrial]) -> AffectedTrials:
    return [trial.record for trial in trials]


def _choose_job(study: StudyHarness) -> tuple[AffectedTrials, str]:
    """The Slurm job of one trial that trains, and all trials that train in it."""
    trials = study.wait_for_moment()
    job = study.settings.rng.choice([trial for trial in trials if trial.job.startswith("slurm ")]).job
    return [trial.record for trial in trials if trial.job == job], job.removeprefix("slurm ")


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def _choose_local_trial(study: StudyHarness) -> RunningTrial:
    return study.settings.rng.choice(_select_local(study.wait_for_moment()))


def _select_local(trials: list[RunningTrial]) -> list[RunningTrial]:
    """The trials that train on this machine. Raises `NotPossibleError` if none does."""
    local = [trial for trial in trials if trial.host == platform.node()]
    if not local:
        raise NotPossibleError(f"the trials train on {trials[0].host}, not on this machine")
    return local


def _stop_process(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def _find_parent(pid: int) -> int:
    command = ["ps", "-o", "ppid=", "-p", str(pid)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603


def _damage_file(path: Path, corrupt: Corrupt, study: StudyHarness) -> None:
    path.write_bytes(corrupt(path.read_bytes(), study.settings.rng))


def _write_until_full(path: Path) -> None:
    """Writes pieces of decreasing size to a file until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
