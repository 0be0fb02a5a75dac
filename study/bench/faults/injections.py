"""The faults: each hits a study while a trial is seen to train, and names the trials that it has hit."""

from __future__ import annotations

import os
import platform
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

from study.bench.faults.harness import StudyHarness, StudyOverError, Training
from study.config.errors import INTERRUPTED
from study.record.io import read_json
from study.record.layout import TrialFolder

AffectedTrials = list[TrialFolder]
Inject = Callable[[StudyHarness], AffectedTrials]
LOCKED_SECONDS = 10.0  # longer than SQLite waits by itself
FULL_SECONDS = 120.0  # for a run to end on a full disk
NODE_MEMORY = 80_000_000  # bytes of a Ray node's object store
TRACEBACK = "Traceback (most recent call last)"


class NotPossibleError(Exception):
    """The fault cannot be injected here, and why."""


# ------------------------------------------------------------------------------------------------- processes


def kill_driver(stage: StudyHarness) -> AffectedTrials:
    """The driver alone: on this machine its trials follow it, on Slurm they go on."""
    hit = stage.moment()
    stage.signal_driver(signal.SIGKILL)
    return _records(hit)


def end_driver(stage: StudyHarness, number: int) -> AffectedTrials:
    """A signal that asks the driver to go: Ctrl-C, or what ends a session."""
    hit = stage.moment()
    code = stage.signal_driver(number)
    if code != INTERRUPTED:
        stage.problems.append(
            f"{signal.Signals(number).name}: exit code {code}, not {INTERRUPTED}: {stage.last_line()}"
        )
    return _records(hit)


def stop_driver(stage: StudyHarness) -> AffectedTrials:
    """As a laptop that sleeps, or a debugger, would."""
    hit = stage.moment()
    _stop(stage.running().pid, stage.setting.stop_seconds)
    return _records(hit)


def signal_trial(stage: StudyHarness, number: int) -> AffectedTrials:
    """A trial's process, and nothing else."""
    victim = _one_here(stage)
    os.kill(victim.pid, number)
    return [victim.record]


def stop_trial(stage: StudyHarness) -> AffectedTrials:
    """Longer than anything that waits for a sign of life should."""
    victim = _one_here(stage)
    _stop(victim.pid, stage.setting.stop_seconds)
    return [victim.record]


def kill_parents(stage: StudyHarness, generations: int) -> AffectedTrials:
    """1: the forkserver that has started the trials of this driver, or worker; 2: the worker itself."""
    victim = _one_here(stage)
    pid = victim.pid
    for _ in range(generations):
        pid = _parent(pid)
    hit = [trial for trial in stage.training() if trial.host == platform.node()]
    os.kill(pid, signal.SIGKILL)
    return _records(hit)


def start_two_drivers(stage: StudyHarness) -> AffectedTrials:
    """One must say, in a line, that there is another, and the other must run the study."""
    hit = stage.moment()
    stage.halt()
    first = len(stage.started)
    two = [stage.start(), stage.start()]
    stage.wait_for(lambda: any(driver.poll() is not None for driver in two), "two drivers run")
    refused = 0 if two[0].poll() is not None else 1
    said = stage.log(first + refused).read_text().strip().splitlines()
    if two[refused].returncode != 2 or len(said) != 1:
        stage.problems.append(f"the second driver ended with exit code {two[refused].returncode}: {said[-1:]}")
    stage.driver = two[1 - refused]
    return _records(hit)


# ---------------------------------------------------------------------------------------------------- files


def damage_checkpoint(stage: StudyHarness, spoil: Callable[[bytes, StudyHarness], bytes]) -> AffectedTrials:
    """The newest checkpoint of a trial, between a kill and the next start."""
    driver = stage.running()
    victim = stage.setting.rng.choice(_here(stage.moment(lambda record: record.last_checkpoint.exists())))
    driver.send_signal(signal.SIGSTOP)
    try:
        os.kill(victim.pid, signal.SIGKILL)
        stage.wait_for(lambda: not victim.record.is_locked(), "a killed trial goes on")
        _rewrite(victim.record.last_checkpoint, spoil, stage)
    finally:
        driver.send_signal(signal.SIGCONT)
    return [victim.record]


def damage_record(stage: StudyHarness, name: str) -> AffectedTrials:
    """A file of a finished trial, between two runs; several between the same two."""
    if not stage.over:
        stage.finish()
    whole = [record for record in stage.folder.trials() if record.read_result() and not record.damaged_files()]
    if not whole:
        raise StudyOverError
    victim = stage.setting.rng.choice(whole)
    _rewrite(victim.path / name, truncated, stage)
    return [victim]


def truncated(data: bytes, stage: StudyHarness) -> bytes:
    """The first bytes, at least one less than there were."""
    return data[: stage.setting.rng.randrange(1, len(data))]


def emptied(data: bytes, stage: StudyHarness) -> bytes:
    """Nothing."""
    return b""


def flipped(data: bytes, stage: StudyHarness) -> bytes:
    """One bit of one byte is another."""
    at = stage.setting.rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << stage.setting.rng.randrange(8)]) + data[at + 1 :]


def fill_disk(stage: StudyHarness) -> AffectedTrials:
    """The run must end with one clear line. Then there is space again."""
    hit = stage.moment()
    driver, start = stage.running(), len(stage.started) - 1
    ballast = stage.path / "ballast"
    try:
        _fill(ballast)
        code = driver.wait(FULL_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
        stage.halt()
    finally:
        ballast.unlink()
    stage.driver = None
    said = stage.log(start).read_text()
    if code is None:
        stage.problems.append(f"a run did not end within {FULL_SECONDS:g} s of a full disk: {stage.last_line()}")
    elif code == 0 and not stage.folder.report.exists():
        stage.problems.append("a run ended with exit code 0 on a full disk")
    elif code and (TRACEBACK in said or "space" not in said):
        stage.problems.append(f"a run on a full disk ended with exit code {code} and not one line: {stage.last_line()}")
    return _records(hit)


# ------------------------------------------------------------------------------------------------- services


def lock_storage(stage: StudyHarness) -> AffectedTrials:
    """Another process, as a browser of SQLite files, holds the storage: while trials end, or while a driver starts."""
    hit = stage.moment()
    if stage.setting.storage is not None:
        raise NotPossibleError("--storage is not the study's own SQLite file")
    if stage.setting.rng.random() < 0.5:
        stage.halt()
    with sqlite3.connect(stage.folder.storage, isolation_level=None, timeout=LOCKED_SECONDS) as other:
        other.execute("BEGIN EXCLUSIVE")
        deadline = time.monotonic() + LOCKED_SECONDS
        while time.monotonic() < deadline:
            if stage.driver is None:
                stage.running()
            time.sleep(0.1)
        other.execute("ROLLBACK")
    return _records(hit)


def restart_storage(stage: StudyHarness) -> AffectedTrials:
    """With the command that the user gives for it."""
    if stage.setting.restart_storage is None:
        raise NotPossibleError("needs --storage URL and --restart-storage COMMAND")
    hit = stage.moment()
    subprocess.run(shlex.split(stage.setting.restart_storage), check=True, capture_output=True, text=True)  # noqa: S603
    return _records(hit)


def cut_off_wandb(stage: StudyHarness) -> AffectedTrials:
    """Logged in, and no server at the address: trials train without."""
    stage.moment()
    stage.halt()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again: nobody answers
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    stage.driver = stage.start("--set", "tracking.mode=auto", environment=environment)
    hit = _records(stage.moment())
    with suppress(StudyOverError):  # they must end without it; the others are spared, W&B lets each wait for 30 s
        stage.wait_for(lambda: bool(stage.running()) and all(record.read_result() for record in hit), "trials wait")
    stage.halt()
    return hit


# ---------------------------------------------------------------------------------------------------- Slurm


def call_slurm(stage: StudyHarness, *command: str) -> AffectedTrials:
    """Does something to the job of a trial that trains, and to no other."""
    hit = stage.moment()
    job = stage.setting.rng.choice([trial for trial in hit if trial.job.startswith("slurm ")]).job
    subprocess.run([*command, job.removeprefix("slurm ")], check=True, capture_output=True, text=True)  # noqa: S603
    return [trial.record for trial in hit if trial.job == job]


def detach(stage: StudyHarness) -> AffectedTrials:
    """The driver goes by itself, and a later one collects."""
    hit = stage.moment()
    stage.signal_driver(signal.SIGKILL)
    code = stage.start("--detach").wait()
    if code != 0:
        stage.problems.append(f"--detach ended with exit code {code}: {stage.last_line()}")
    return _records(hit)


# ------------------------------------------------------------------------------------------------------ Ray


def kill_node(stage: StudyHarness) -> AffectedTrials:
    """A node that trains, without a word to Ray; another one joins."""
    cluster = stage.setting.cluster
    if cluster is None:
        raise NotPossibleError("would kill a node of your cluster")
    nodes = {f"ray node {node.node_id[:8]}": node for node in cluster.worker_nodes}  # without the head

    def on_a_worker(record: TrialFolder) -> bool:
        return (read_json(record.state) or {}).get("job") in nodes

    hit = stage.moment(on_a_worker)
    cluster.remove_node(nodes[hit[0].job], allow_graceful=False)
    add_ray_node(cluster)
    return [trial.record for trial in hit if trial.job == hit[0].job]


# -------------------------------------------------------------------------------------------------- the lists

_TERM, _INT, _KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
LOCAL: Mapping[str, Inject] = {
    "kill-trial": partial(signal_trial, number=_KILL),
    "term-trial": partial(signal_trial, number=_TERM),
    "stop-trial": stop_trial,
    "kill-forkserver": partial(kill_parents, generations=1),
    "truncate-checkpoint": partial(damage_checkpoint, spoil=truncated),
    "empty-checkpoint": partial(damage_checkpoint, spoil=emptied),
    "flip-checkpoint": partial(damage_checkpoint, spoil=flipped),
    "kill-driver": kill_driver,
    "term-driver": partial(end_driver, number=_TERM),
    "interrupt-driver": partial(end_driver, number=_INT),
    "stop-driver": stop_driver,
    "two-drivers": start_two_drivers,
    "lock-storage": lock_storage,
    "restart-storage": restart_storage,
    "cut-off-wandb": cut_off_wandb,
    "truncate-metrics": partial(damage_record, name="metrics.jsonl"),
    "truncate-switch-weights": partial(damage_record, name="switch_weights.parquet"),
    "truncate-result": partial(damage_record, name="result.json"),
    "fill-disk": fill_disk,
    "fill-disk-again": fill_disk,
}
SLURM: Mapping[str, Inject] = {
    "kill-job": lambda stage: call_slurm(stage, "scancel", "--signal=KILL"),
    "cancel-job": lambda stage: call_slurm(stage, "scancel"),
    "warn-job": lambda stage: call_slurm(stage, "scancel", "--signal=USR2"),
    "term-job": lambda stage: call_slurm(stage, "scancel", "--signal=TERM"),
    "requeue-job": lambda stage: call_slurm(stage, "scontrol", "requeue"),
    "kill-driver": kill_driver,
    "interrupt-driver": partial(end_driver, number=_INT),
    "detach": detach,
}
RAY: Mapping[str, Inject] = {
    "kill-trial": partial(signal_trial, number=_KILL),
    "kill-worker": partial(kill_parents, generations=2),
    "kill-driver": kill_driver,
    "kill-node": kill_node,
}
FAULTS: dict[str, Mapping[str, Inject]] = {"local": LOCAL, "slurm": SLURM, "ray": RAY}
NEEDS_SMALL_DISK = ("fill-disk", "fill-disk-again")


# ------------------------------------------------------------------------------------------------------ helpers


def add_ray_node(cluster: Any) -> None:
    """A node for one trial at a time. The first is the head."""
    extra = {} if cluster.head_node else {"include_dashboard": False}
    cluster.add_node(num_cpus=1, object_store_memory=NODE_MEMORY, **extra)


def _records(trials: list[Training]) -> AffectedTrials:
    return [trial.record for trial in trials]


def _one_here(stage: StudyHarness) -> Training:
    return stage.setting.rng.choice(_here(stage.moment()))


def _here(trials: list[Training]) -> list[Training]:
    found = [trial for trial in trials if trial.host == platform.node()]
    if not found:
        raise NotPossibleError(f"the trials train on {trials[0].host}, not on this machine")
    return found


def _stop(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def _parent(pid: int) -> int:
    said = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)  # noqa: S603, S607
    return int(said.stdout)


def _rewrite(path: Path, spoil: Callable[[bytes, StudyHarness], bytes], stage: StudyHarness) -> None:
    path.write_bytes(spoil(path.read_bytes(), stage))


def _fill(path: Path) -> None:
    """Writes to a file until nothing more fits, then byte by byte."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
