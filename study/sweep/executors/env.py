"""Runs trials in processes that were started from outside, by torchrun, srun or an operator of Kubernetes.

All of them run the same command. The one of rank 0 is the driver. It trains one trial at a time, and the others train
with it: each trains an equal share of `run.devices_per_trial`. They learn of trials from a store of the driver, and of
its port at `env://`; the ranks of a trial meet at a port of their own. Anyone on the network can write to a store, so
the jobs in it are signed with a key that only the study's owner can read, in the study's folder.
"""

from __future__ import annotations

import hmac
import os
import pickle
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from study.config.errors import DONE, INTERRUPTED, SOME_FAILED, UserError
from study.config.rendezvous import Rendezvous
from study.config.schema import RunConfig, StudyConfig
from study.plan.job import Job
from study.record.layout import StudyFolder
from study.sweep.executors.attempts import POLL_SECONDS
from study.sweep.executors.base import STOP_GRACE_SECONDS
from study.sweep.executors.follower_node import end_joining, start_joining
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_cores, find_devices, find_free_port
from study.training.preemption import StopRequest, handle_signals

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

PROCESS_COUNTS = {"WORLD_SIZE": "torchrun", "SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun",
                  "PMI_SIZE": "mpiexec"}  # fmt: skip
"""Variables with the number of processes that a program has started together."""
CONNECT_SECONDS = 1800.0  # for all processes to start: that of rank 0 may have to check its data first
QUIET_SECONDS = 30.0  # without a line about what a process waits for
TRY_SECONDS = 5.0  # to reach a store
ANSWER_SECONDS = 60.0  # for a store to answer
BEAT_SECONDS = 5.0  # between the signs of life of a process
MISSED_POLLS = 240  # of the driver, without a sign of life of a process: two minutes. Not a time: all may be suspended
END = b""  # in place of a job: the study has ended
DIGEST, DIGEST_BYTES = "sha256", 32  # of signatures
Found = TypeVar("Found")


def count_processes() -> tuple[int, str]:
    """Returns how many processes run this command together, and how that is known; 1 if it was started once."""
    for variable, program in PROCESS_COUNTS.items():
        count = os.environ.get(variable, "")
        if count.isdigit() and int(count) > 1:
            return int(count), f"{variable}={count}: {program} has started this command {count} times"
    return 1, ""


def check_started_once() -> None:
    """Raises `UserError` if several processes run this command: each would take the study for its own."""
    count, how = count_processes()
    if count > 1:
        raise UserError(
            f"{how}; start it once, with run.devices_per_trial={count} for trials on {count} devices, or add "
            "--launcher env to train each trial in all of these processes"
        )


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None) -> EnvExecutor:
    """Builds the executor of the process of rank 0."""
    return EnvExecutor(study, folder)


class EnvExecutor(LocalExecutor):
    """Trains one trial at a time, in this process's share of its ranks and in the other processes."""

    def __init__(self, study: StudyConfig, folder: StudyFolder) -> None:
        here = find_environment()
        self.rendezvous = Rendezvous(
            nodes=here.world_size(), node=0, address=here.main_address, port=0, interface=study.launch.interface
        )
        devices, threads = _find_share(study.run, here)
        super().__init__(1, sorted(set(devices)), threads)
        self.folder, self.key = folder, b""
        self.store, self.submitted = _open_store(here), 0
        self.beats = dict.fromkeys(range(1, here.world_size()), (0, 0))  # by rank: their number, polls since the last

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts the process of a trial, here and in the other processes."""
        (job,) = jobs
        self.key = self.key or _write_key(self.folder)  # now that the driver has the folder for itself
        job = replace(job, rendezvous=replace(self.rendezvous, port=find_free_port()))
        self._tell(_sign(self.key, pickle.dumps(job)))
        super().submit([job])

    def wait(self, seconds: float) -> dict[str, str]:
        """Waits as on one machine. Raises `UserError` if another process has ended."""
        for rank, (number, missed) in self.beats.items():
            latest = self.store.add(f"beats of {rank}", 0)
            self.beats[rank] = latest, 0 if latest > number else missed + 1
            if missed >= MISSED_POLLS:
                raise UserError(
                    f"--launcher env: process {rank} has ended or does not answer. Run the same command to resume."
                )
        return super().wait(seconds)

    def close(self, grace: float = STOP_GRACE_SECONDS) -> None:
        """Stops the trial after its step, and ends the other processes."""
        super().close(grace)
        self._tell(END)

    def _tell(self, message: bytes) -> None:
        self.store.set(str(self.submitted), message)  # type: ignore[arg-type]  # takes bytes, too
        self.submitted += 1


def follow_driver(study: StudyConfig, folder: StudyFolder) -> int:
    """Trains this process's share of every trial until the driver ends; returns the exit code.

    Raises `UserError` for a message that the driver of this folder has not signed.
    """
    import torch.distributed as dist

    here = find_environment()
    _find_share(study.run, here)  # rank 0 would refuse it, too
    try:
        store = _open_store(here)
        threading.Thread(target=_beat, args=(store, here.global_rank()), daemon=True).start()
        with handle_signals() as stop_request:
            messages = _Messages(store, folder, stop_request)
            while message := messages.receive():
                job: Job = pickle.loads(message)  # noqa: S301  # signed by the driver
                assert job.rendezvous is not None
                job = replace(job, rendezvous=replace(job.rendezvous, node=here.global_rank()))
                devices, threads = _find_share(job.run, here)  # of rank 0's settings
                _join(job.assign(devices * job.nodes, threads), messages, stop_request)
    except dist.DistError:
        print(f"process {here.global_rank()}: the process of rank 0 has ended or does not answer", file=sys.stderr)
        return SOME_FAILED
    return INTERRUPTED if stop_request.signal else DONE


class _Messages:
    """The jobs that the driver has sent, in their order."""

    def __init__(self, store: TCPStore, folder: StudyFolder, stop_request: StopRequest) -> None:
        self.store, self.folder, self.stop_request, self.number = store, folder, stop_request, 0

    def has_next(self) -> bool:
        """Whether `receive` returns at once."""
        return self.stop_request.signal is not None or self.store.check([str(self.number)])

    def receive(self) -> bytes:
        """Waits for the next job; returns `END` when the study has ended, or this process is asked to."""
        while not self.has_next():
            time.sleep(POLL_SECONDS)
        if self.stop_request.signal:
            return END
        self.number += 1
        message = self.store.get(str(self.number - 1))
        return message and _check_signature(self.folder, message)  # not `END`: a driver without a trial has no key


def _write_key(folder: StudyFolder) -> bytes:
    """Writes a new key into the study's folder, which all processes share; only its owner can read it."""
    key = secrets.token_bytes(DIGEST_BYTES)
    folder.jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.env_key.unlink(missing_ok=True)
    with open(folder.env_key, "xb", opener=lambda name, flags: os.open(name, flags, mode=0o600)) as file:
        file.write(key)
    return key


def _sign(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, DIGEST) + message


def _check_signature(folder: StudyFolder, signed: bytes) -> bytes:
    """Returns the message without its signature."""
    try:
        key = folder.env_key.read_bytes()
    except OSError as error:
        raise UserError(
            f"--launcher env: {folder.env_key}: {error.strerror}; all processes need the same folder"
        ) from None
    message = signed[DIGEST_BYTES:]
    if not hmac.compare_digest(signed, _sign(key, message)):
        raise UserError("--launcher env: a message that the driver of this folder has not signed; all processes need "
                        "the same folder")  # fmt: skip
    return message


def _join(job: Job, messages: _Messages, stop_request: StopRequest) -> None:
    """Joins every attempt of a trial that rank 0 makes, until the driver sends another trial or ends."""
    while not messages.has_next():
        process = start_joining([job])
        try:
            while process.is_alive() and not messages.has_next():
                process.join(POLL_SECONDS)
        finally:
            is_left = stop_request.signal is None and sys.exc_info()[0] is None
            end_joining(process, 0 if is_left else STOP_GRACE_SECONDS)


def find_environment() -> ClusterEnvironment:
    """Returns Lightning's view of the processes that were started together. Raises `UserError` if there is only one."""
    if count_processes()[0] == 1:
        raise UserError("--launcher env: this command was started once; start it several times, with torchrun or srun, "
                        "or use --launcher local")  # fmt: skip
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        os.environ.setdefault("LOCAL_RANK", "0")  # an operator of Kubernetes starts one process per machine
        return TorchElasticEnvironment()
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        try:
            return SLURMEnvironment()
        except RuntimeError:  # Lightning does not know how the tasks are spread over nodes
            raise UserError(
                "--launcher env: start srun with --nodes and --ntasks-per-node, not with --ntasks"
            ) from None
    raise UserError("--launcher env: needs the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of torchrun, or "
                    "those of srun")  # fmt: skip


def _open_store(here: ClusterEnvironment) -> TCPStore:
    """Opens a store on rank 0 and waits until all processes have opened it.

    The store of torchrun outlives a restart and would still hold old messages, so it holds only the port of this one.
    Raises `UserError` if a process does not come.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    address, port, size = here.main_address, here.main_port, here.world_size()
    is_driver, is_torchrun = not here.global_rank(), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_driver and not is_torchrun:
        try:
            ports = TCPStore(address, port, is_master=True, wait_for_workers=False)
        except DistError:
            raise UserError(f"--launcher env: cannot listen on port {port} of {address}; another program may use it: "
                            "set another MASTER_PORT") from None  # fmt: skip
    else:
        ports = _wait_for(lambda: _connect(address, port), f"{address}, port {port}, does not answer")
    if is_driver:
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        ports.set("port", str(store.port))
    else:  # the port may still be that of a driver that has ended
        store = _wait_for(
            lambda: _connect(address, int(ports.get("port"))) if ports.check(["port"]) else None,
            f"the process of rank 0 on {address} does not answer",
        )
    store.add("processes", 1)
    _wait_for(lambda: store.add("processes", 0) >= size or None, f"not all of the {size} processes have started")
    return store


def _wait_for(find: Callable[[], Found | None], problem: str) -> Found:
    """Calls a function until it returns a value, and returns that. Waits in Python: torch would handle no signals."""
    started, is_told = time.monotonic(), False
    while (found := find()) is None:
        waited = time.monotonic() - started
        if waited > CONNECT_SECONDS:
            raise UserError(f"--launcher env: {problem} after {CONNECT_SECONDS:.0f} s")
        if waited > QUIET_SECONDS and not is_told:
            is_told = True
            print(f"--launcher env: {problem} yet; waiting for at most {CONNECT_SECONDS / 60:.0f} min", file=sys.stderr)
        time.sleep(POLL_SECONDS)
    return found


def _connect(address: str, port: int) -> TCPStore | None:
    """Opens the store of another process; None if nothing answers there."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    try:
        socket.create_connection((address, port), timeout=TRY_SECONDS).close()  # torch would print its failures
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS))
    except (OSError, DistError):
        return None


def _beat(store: TCPStore, rank: int) -> None:
    """Shows the driver that this process lives, until the driver ends."""
    from torch.distributed import DistError

    with suppress(DistError):
        while True:
            store.add(f"beats of {rank}", 1)
            time.sleep(BEAT_SECONDS)


def _find_share(run: RunConfig, here: ClusterEnvironment) -> tuple[tuple[str, ...], int]:
    """Returns the devices of this process's ranks, and the threads of each. Raises `UserError` if there are too few.

    Processes on the same machine take one after the other of its GPUs; srun may let each see only its own.
    """
    count, processes = run.devices_per_trial, here.world_size()
    if count % processes:
        raise UserError(f"run.devices_per_trial={count}: must be a multiple of {processes}, the number of processes")
    count //= processes
    found, first = find_devices(run.device), here.local_rank() * count
    if found == ["cpu"]:
        return ("cpu",) * count, min(run.threads, max(1, count_cores() // count))
    if count > len(found):
        raise UserError(f"run.devices_per_trial={run.devices_per_trial}: allowed: up to {processes * len(found)}")
    first %= len(found) // count * count
    return tuple(found[first : first + count]), run.threads
