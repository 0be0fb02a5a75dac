"""One trial over several devices of a machine: a process each, a team, that exchange through torch.distributed.

The first of them is the trial's process; it starts the others, and they end when it ends. If one of them dies, so does
the trial's process, and whoever started it starts it again.
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
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"
GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes that train one trial; this is number `rank` of `ranks`. All of them must make the same calls."""

    rank: int = 0
    ranks: int = 1

    @property
    def part(self) -> tuple[int, int]:
        """Which part of a batch is this process's, of how many."""
        return self.rank, self.ranks

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all ranks, (ranks, *own.shape)."""
        if self.ranks == 1:
            return own[None]
        gathered = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(gathered, own)
        return torch.stack(gathered)

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Averages tensors of one dtype over the ranks, in place and in one exchange.

        In the same order of additions every time, as DistributedDataParallel is not: its first step and the others lay
        gradients out differently, and a resumed run would have another first step.
        """
        if self.ranks == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.ranks
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, wish: int) -> int:
        """What the first rank wishes."""
        if self.ranks == 1:
            return wish
        wishes = torch.tensor([wish])  # on the CPU: no device waits for it
        dist.broadcast(wishes, 0)
        return int(wishes)


@contextmanager
def launch_ranks(devices: Sequence[str], follow: Callable[..., None], *arguments: object) -> Iterator[ProcessGroup]:
    """A team with a rank for each of `devices`, of which this process is the first. Inside, it is there.

    The others run `follow(team, *arguments)`, a function of a module.
    """
    if len(devices) == 1:
        yield ProcessGroup()
        return
    first, *others = (ProcessGroup(rank=rank, ranks=len(devices)) for rank in range(len(devices)))
    store = TCPStore(LOOPBACK, 0, first.ranks, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([follow.__module__])
    processes = [
        context.Process(
            target=_run_rank, args=(team, devices[team.rank], store.port, follow, arguments),
            name=f"rank {team.rank}",
        )
        for team in others
    ]  # fmt: skip
    closing = threading.Event()
    for process in processes:
        process.start()
    watch = threading.Thread(target=_end_with_any, args=(processes, closing), daemon=True)
    watch.start()
    try:
        _join(first, devices[0], store)
        yield first
        watch.join(GRACE_SECONDS)
    except RuntimeError:  # perhaps only because another rank is gone: then this process is about to end
        if wait([process.sentinel for process in processes], timeout=GRACE_SECONDS):
            time.sleep(GRACE_SECONDS)
        raise
    finally:
        closing.set()
        for process in processes:
            process.kill()
        watch.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def end_with_parent() -> None:
    """Lets this process end when the one that started it does, however that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def redirect_output(log: Path) -> None:
    """Appends what this process prints from now on to a file."""
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _run_rank(
    team: ProcessGroup, device: str, port: int, follow: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a cluster signals every process of a job; the first one decides
    end_with_parent()
    _join(team, device, TCPStore(LOOPBACK, port, team.ranks, is_master=False))
    follow(team, *arguments)
    dist.destroy_process_group()


def _join(team: ProcessGroup, device: str, store: Store) -> None:
    interfaces = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interfaces[0])  # else it asks for the host's name, which may have none
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=team.rank, world_size=team.ranks)


def _end_with_any(processes: Sequence[ForkServerProcess], closing: threading.Event) -> None:
    """Ends this process when another rank has died: waiting for it would take for ever. Returns when all have ended."""
    alive = list(processes)
    while alive:
        wait([process.sentinel for process in alive])
        for process in alive:
            if process.exitcode and not closing.is_set():
                print(f"{process.name} ended with exit code {process.exitcode}", file=sys.stderr, flush=True)
                os._exit(1)
        alive = [process for process in alive if process.exitcode is None]
