"""Runs trials in processes that were started from outside, by torchrun, srun or an operator of Kubernetes.

All of them run the same command. The one of rank 0 is the driver. It trains one trial at a time, and the others train
with it: each trains an equal share of `run.devices_per_trial`. They learn of trials from a store of the driver, and of
its port at `env://`; the ranks of a trial meet at a port of their own. Anyone on the network can write to a store, so
what the driver sends is signed with a key that only the study's owner can read, in the study's folder.
"""

from __future__ import annotations

import hmac
import os
import pickle
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from study.config.errors import DONE, INTERRUPTED, SOME_FAILED, UserError
from study.config.rendezvous import Rendezvous
from study.config.schema import RunConfig, StudyConfig
from study.plan.job import Job
from study.record.layout import StudyFolder
from study.sweep.executors.attempts import POLL_SECONDS
from study.sweep.executors.base import STOP_GRACE_SECONDS
from study.sweep.executors.follower_node import end_joining, start_joining
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_cores, find_devices
from study.training.preemption import StopRequest, handle_signals

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

PROCESS_COUNTS = {"WORLD_SIZE": "torchrun", "SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun",
                  "PMI_SIZE": "mpiexec"}  # fmt: skip
"""Variables with the number of processes that a program has started together."""
CONNECT_SECONDS = 1800.0  # for all processes to start: that of rank 0 may have to check its data first
TRY_SECONDS = 5.0  # to open the store of rank 0
END = b""  # in place of a job: the study has ended
DIGEST = "sha256"
DIGEST_BYTES = 32


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
        self.key = _write_key(folder)
        self.store, self.submitted = _open_store(here), 0

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts the process of a trial, here and in the other processes."""
        (job,) = jobs
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        job = replace(job, rendezvous=replace(self.rendezvous, port=port))
        self._tell(pickle.dumps(job))
        super().submit([job])

    def close(self, grace: float = STOP_GRACE_SECONDS) -> None:
        """Stops the trial after its step, and ends the other processes."""
        super().close(grace)
        self._tell(END)

    def _tell(self, message: bytes) -> None:
        self.store.set(str(self.submitted), _sign(self.key, message))  # type: ignore[arg-type]  # takes bytes, too
        self.submitted += 1


def follow_driver(study: StudyConfig, folder: StudyFolder) -> int:
    """Trains this process's share of every trial until the driver ends; returns the exit code.

    Raises `UserError` for a message that the driver of this folder has not signed.
    """
    import torch.distributed as dist

    here = find_environment()
    devices, threads = _find_share(study.run, here)
    with handle_signals() as stop_request:
        try:
            messages = _Messages(_open_store(here), folder, stop_request)
            while message := messages.receive():
                job: Job = pickle.loads(message)  # noqa: S301  # signed by the driver
                assert job.rendezvous is not None
                job = replace(job, rendezvous=replace(job.rendezvous, node=here.global_rank()))
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
        return _check_signature(self.folder, self.store.get(str(self.number - 1)))


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
    """Joins every attempt of a trial on rank 0 until the driver goes on to another one."""
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
        except RuntimeError as error:
            raise UserError(f"--launcher env: {' '.join(str(error).split())}") from None
    raise UserError("--launcher env: needs the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of torchrun, or "
                    "those of srun")  # fmt: skip


def _open_store(here: ClusterEnvironment) -> TCPStore:
    """Opens a store on rank 0 and waits until all processes have opened it.

    Not that of torchrun, which still holds the messages of before after a restart; there is only the port of this one.
    Raises `UserError` if a process does not come.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    os.environ |= {"MASTER_ADDR": here.main_address, "MASTER_PORT": str(here.main_port)}
    rank, size, deadline = here.global_rank(), here.world_size(), time.monotonic() + CONNECT_SECONDS
    ports = next(rendezvous("env://", rank=rank, world_size=size, timeout=timedelta(seconds=CONNECT_SECONDS)))[0]
    if not rank:
        store = TCPStore(here.main_address, 0, is_master=True, wait_for_workers=False)
        ports.set("port", str(store.port))
    while rank:
        try:
            port = int(ports.get("port"))
            store = TCPStore(here.main_address, port, is_master=False, timeout=timedelta(seconds=TRY_SECONDS))
            break
        except DistError:  # the port of a driver that has ended
            if time.monotonic() > deadline:
                raise
    count = store.add("processes", 1)
    while count < size:
        if time.monotonic() > deadline:
            raise UserError(f"--launcher env: {count} of {size} processes have started within {CONNECT_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
        count = store.add("processes", 0)
    return store


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
