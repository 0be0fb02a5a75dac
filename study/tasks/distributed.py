"""Trains one trial on several devices of a machine: one process per device, connected by torch.distributed.

Rank 0 is the trial's own process. It starts the other ranks, and they exit when it exits. When another rank dies, rank
0 exits too, and the executor starts the trial again.
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
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from study.config.signals import STOP_SIGNALS, start_forkserver

LOOPBACK = "127.0.0.1"
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


@contextmanager
def launch_ranks(devices: Sequence[str], run_rank: Callable[..., None], *arguments: object) -> Iterator[ProcessGroup]:
    """Starts a process group with one rank per device, and gives rank 0, which is this process.

    The other ranks call `run_rank(group, *arguments)`, which must be a function of a module.
    """
    if len(devices) == 1:
        yield ProcessGroup()
        return
    first, *others = (ProcessGroup(rank=rank, world_size=len(devices)) for rank in range(len(devices)))
    store = TCPStore(LOOPBACK, 0, first.world_size, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_rank.__module__])
    processes = [
        context.Process(
            target=_run_other_rank, args=(group, devices[group.rank], store.port, run_rank, arguments),
            name=f"rank {group.rank}",
        )
        for group in others
    ]  # fmt: skip
    closing = threading.Event()
    start_forkserver()
    for process in processes:
        process.start()
    watch = threading.Thread(target=_exit_with_any_rank, args=(processes, closing), daemon=True)
    watch.start()
    try:
        _init_process_group(first, devices[0], store)
        yield first
        watch.join(RANK_EXIT_SECONDS)
    except RuntimeError:  # if the cause is the death of another rank, the watching thread is about to end this process
        if wait([process.sentinel for process in processes], timeout=RANK_EXIT_SECONDS):
            time.sleep(RANK_EXIT_SECONDS)
        raise
    finally:
        closing.set()
        for process in processes:
            process.kill()
        watch.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _run_other_rank(
    group: ProcessGroup, device: str, port: int, run_rank: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)  # a cluster signals every process of a job; rank 0 decides for all
    _exit_with_parent()
    _init_process_group(group, device, TCPStore(LOOPBACK, port, group.world_size, is_master=False))
    run_rank(group, *arguments)
    dist.destroy_process_group()


def _init_process_group(group: ProcessGroup, device: str, store: Store) -> None:
    interfaces = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interfaces[0])  # by default it resolves the host name, which can fail
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.world_size)


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
