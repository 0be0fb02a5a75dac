"""Trains one trial on several devices: one process per device, connected by torch.distributed.

Rank 0 is the trial's own process. It starts the other ranks of its machine, and they exit when it exits. On each other
node that trains with it, a process that waits for trials starts the ranks of that node. When any rank dies, rank 0
exits too, and the executor starts the trial again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from study.config.errors import UserError, allowed_names
from study.config.rendezvous import Rendezvous
from study.config.signals import STOP_SIGNALS, start_forkserver

LOOPBACK = "127.0.0.1"
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # after which a rank that does not answer ends the attempt of its trial
JOIN_TIMEOUT = timedelta(seconds=20)
RANK_EXIT_SECONDS = 5.0  # how long the exit of another rank is waited for


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes that train one trial, with the rank of this process. All ranks must make the same calls."""

    rank: int = 0
    world_size: int = 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, (world_size, *tensor.shape)."""
        if self.world_size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Averages tensors of one dtype over the ranks, in place and with one all-reduce.

        The order of additions is the same at every step. In DistributedDataParallel it is not: the first step has other
        buckets than the later ones, so that a resumed run would differ from an uninterrupted one.
        """
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, value: int) -> int:
        """Broadcasts rank 0's value to all ranks."""
        if self.world_size == 1:
            return value
        values = torch.tensor([value])  # on the CPU, so that no device has to be waited for
        dist.broadcast(values, 0)
        return int(values)


@dataclass(frozen=True, kw_only=True)
class _Meeting:
    """Where the ranks of an attempt meet: the address of a store, and a name that no other attempt has.

    rendezvous: of the nodes of these ranks; None for one machine.
    """

    address: str
    port: int
    name: str
    rendezvous: Rendezvous | None


@contextmanager
def launch_ranks(
    devices: Sequence[str],
    run_rank: Callable[..., None],
    *arguments: object,
    rendezvous: Rendezvous | None = None,
    note: str = "",
) -> Iterator[ProcessGroup]:
    """Starts a process group with one rank per device, and gives rank 0, which is this process.

    The other ranks call `run_rank(group, *arguments)`, which must be a function of a module. Those on other nodes are
    started by `join_ranks`, which receives the `note`.
    """
    if len(devices) == 1:
        yield ProcessGroup()
        return
    port, nodes = (rendezvous.port, rendezvous.nodes) if rendezvous else (0, 1)
    store = TCPStore(LOOPBACK, port, len(devices), is_master=True, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT)
    name = uuid4().hex
    store.set("name", name)
    store.set("note", note)
    meeting = _Meeting(address=LOOPBACK, port=store.port, name=name, rendezvous=rendezvous)
    with _run_node(devices, range(len(devices) // nodes), meeting, store, run_rank, arguments) as group:
        yield group


def join_ranks(
    devices: Sequence[str],
    run_rank: Callable[..., None],
    read_note: Callable[[str], Sequence[object]],
    rendezvous: Rendezvous,
) -> bool:
    """Runs the ranks of this node of a trial that the first node trains, until it ends.

    Returns False if no trial has started within `JOIN_TIMEOUT`. read_note: returns the arguments of `run_rank`.
    """
    address, size = rendezvous.address, len(devices) // rendezvous.nodes
    try:
        store = TCPStore(address, rendezvous.port, len(devices), is_master=False, timeout=JOIN_TIMEOUT)
        name, note = (store.get(key).decode() for key in ("name", "note"))
    except dist.DistError:
        return False
    first, arguments = rendezvous.node * size, read_note(note)
    meeting = _Meeting(address=address, port=store.port, name=name, rendezvous=rendezvous)
    with _run_node(devices, range(first, first + size), meeting, store, run_rank, arguments) as group:
        run_rank(group, *arguments)
    return True


@contextmanager
def _run_node(
    devices: Sequence[str],
    ranks: range,
    meeting: _Meeting,
    store: TCPStore,
    run_rank: Callable[..., None],
    arguments: Sequence[object],
) -> Iterator[ProcessGroup]:
    """Starts the ranks of this node, and gives the first of them, which is this process."""
    first, *others = (ProcessGroup(rank=rank, world_size=len(devices)) for rank in ranks)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_rank.__module__])
    processes = [
        context.Process(
            target=_run_other_rank, args=(group, devices[group.rank], meeting, run_rank, arguments),
            name=f"rank {group.rank}",
        )
        for group in others
    ]  # fmt: skip
    closing = threading.Event()
    for process in processes:
        start_forkserver()
        process.start()
    watch = threading.Thread(target=_exit_with_any_rank, args=(processes, closing), daemon=True)
    watch.start()
    try:
        with _exit_if_connection_is_lost(first, processes):
            _init_process_group(first, devices[first.rank], meeting, store)
            yield first
        watch.join(RANK_EXIT_SECONDS)
    finally:
        closing.set()
        for process in processes:
            process.kill()
        watch.join()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _exit_if_connection_is_lost(group: ProcessGroup, others: Sequence[ForkServerProcess] = ()) -> Iterator[None]:
    """Ends this process when another rank has died, which is no failure of the trial: it is tried again."""
    try:
        yield
    except RuntimeError as error:
        # If the cause is the death of a rank on this machine, the thread that watches it is about to end this process.
        if others and wait([process.sentinel for process in others], timeout=RANK_EXIT_SECONDS):
            time.sleep(RANK_EXIT_SECONDS)
        if not is_connection_lost(error):
            raise
        print(f"rank {group.rank}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        os._exit(1)


def is_connection_lost(error: Exception) -> bool:
    """Whether an error says that another rank has died or does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _run_other_rank(
    group: ProcessGroup,
    device: str,
    meeting: _Meeting,
    run_rank: Callable[..., None],
    arguments: Sequence[object],
) -> None:
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)  # a cluster signals every process of a job; rank 0 decides for all
    _exit_with_parent()
    with _exit_if_connection_is_lost(group):
        store = TCPStore(meeting.address, meeting.port, group.world_size, is_master=False, timeout=COLLECTIVE_TIMEOUT)
        _init_process_group(group, device, meeting, store)
        run_rank(group, *arguments)
    dist.destroy_process_group()


def _init_process_group(group: ProcessGroup, device: str, meeting: _Meeting, store: Store) -> None:
    _choose_interface(meeting.rendezvous)
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=PrefixStore(meeting.name, store), rank=group.rank, world_size=group.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )  # fmt: skip


def _choose_interface(rendezvous: Rendezvous | None) -> None:
    """Sets the network interface of this process's collectives: that of the rendezvous, or loopback on one machine.

    Without one in the rendezvous, gloo and NCCL read the user's variables, and gloo otherwise resolves the host's name.
    """
    known = [name for _, name in socket.if_nameindex()]
    if rendezvous is None:  # the host's name may not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", next(name for name in known if name.startswith("lo")))
    elif rendezvous.interface is not None:
        for name in rendezvous.interface.split(","):
            if name not in known:
                raise UserError(f"launch.interface={name}: {socket.gethostname()} has none of this name; "
                                f"{allowed_names(name, known)}")  # fmt: skip
        os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), rendezvous.interface)


def _exit_with_parent() -> None:
    """Starts a thread that ends this process when its parent ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _exit_with_any_rank(processes: Sequence[ForkServerProcess], closing: threading.Event) -> None:
    """Ends this process when another rank has died: a collective would wait for it forever.

    Returns when all other ranks have ended.
    """
    alive = list(processes)
    while alive:
        wait([process.sentinel for process in alive])
        for process in alive:
            if process.exitcode and not closing.is_set():
                print(f"{process.name} ended with exit code {process.exitcode}", file=sys.stderr, flush=True)
                os._exit(1)
        alive = [process for process in alive if process.exitcode is None]
