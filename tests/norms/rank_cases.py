"""Runs layers and networks on the ranks of a gloo group, and in one process with the batches of all ranks."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from study.config.schema import TrialConfig
from study.models import build_network
from study.norms import average_statistics, build_norm, set_radius
from study.norms.kernels.dispatch import kernel_kind, load_kernels

CHANNELS = 4
WORLD_SIZES = (1, 2, 3)


def run_groups(folder, cases):
    """Runs cases on groups of every size, one after the other.

    cases: {world size: cases}. Returns {world size: {case: results of its ranks}}.
    """
    assert load_kernels("cpu")  # before the ranks, which would wait while one of them compiles
    # The forkserver imports this module once, for all ranks.
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        _run_rank, (str(folder), cases), nprocs=max(WORLD_SIZES), start_method="forkserver"
    )
    by_rank = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(max(WORLD_SIZES))]
    return {
        ranks: {case: [results[ranks][case] for results in by_rank[:ranks]] for case in cases[ranks]}
        for ranks in WORLD_SIZES
    }


def _run_rank(rank, folder, cases):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    results = {}
    for ranks in WORLD_SIZES:
        if rank < ranks:
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/group{ranks}", rank=rank, world_size=ranks,
                timeout=timedelta(minutes=1),
            )  # fmt: skip
            results[ranks] = {case: case.run(ranks, rank) for case in cases[ranks]}
            dist.destroy_process_group()
    torch.save(results, Path(folder) / f"{rank}.pt")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def select_part(values, ranks, rank):
    """The part of a rank; all values if `rank` is None."""
    return values if rank is None else values.chunk(ranks)[rank]


class CountCollectives(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "c10d"
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """One step of `layers` layers with `samples` per rank; `rank` None is one process, without `sync`."""

    norm: str = "sn"
    samples: int = 2
    pixels: tuple[int, ...] = (3, 2)
    offset: float = 0.5
    correction: int = 0
    layers: int = 1
    dtype: torch.dtype = torch.float64

    def __str__(self):
        return f"{self.norm}, {self.samples} x {self.pixels} + {self.offset:g}"

    def build(self, *, sync):
        norm = build_norm(self.norm, sync=sync, correction=self.correction, momentum=0.3, groups=2)
        model = nn.Sequential(*[norm(CHANNELS) for _ in range(self.layers)]).double()
        with torch.no_grad():
            for seed, parameter in enumerate(model.parameters(), start=1):
                parameter.add_(0.3 * draw(*parameter.shape, seed=seed))
        return model.to(self.dtype)

    def run(self, ranks, rank=None):
        model = self.build(sync=rank is not None)
        whole = draw(ranks * self.samples, CHANNELS, *self.pixels) + self.offset
        x = select_part(whole, ranks, rank).to(self.dtype).requires_grad_()
        with CountCollectives() as forward:
            y = model(x)
        upstream = select_part(draw(*whole.shape, seed=9), ranks, rank)
        loss = (y * upstream).sum() / len(y)
        with CountCollectives() as backward:
            loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        dx = x.grad
        if rank is not None:
            average_over_ranks(gradients.values())
            dx /= ranks  # the loss is a mean over the samples of the rank, in one process over all samples
        return {
            "y": y.detach(), "dx": dx, "gradients": gradients, "buffers": running_buffers(model),
            "collectives": (forward.count, backward.count), "kernel_kind": kernel_kind("cpu", sync=rank is not None),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NetworkCase:
    """Two steps of a ResNet-8 on (G, B) = (ranks, 2) under DistributedDataParallel; one process emulates it."""

    norm: str
    sync: bool

    def __str__(self):
        return f"{self.norm}, {'synchronized' if self.sync else 'by rank'}"

    def run(self, ranks, rank=None):
        config = TrialConfig(
            depth=8, width=0.5, norm=self.norm, batch_size=2, chunks=ranks, sync_statistics=self.sync,
            zero_last_gamma=False,
        )  # fmt: skip
        network = model = build_network(config, seed=3, ranks=1 if rank is None else ranks).double()
        if rank is not None:
            model = DistributedDataParallel(network, broadcast_buffers=False)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in range(2):
            images = select_part(draw(2 * ranks, 1, 8, 8, seed=step), ranks, rank)
            labels = select_part(torch.arange(2 * ranks) % 10, ranks, rank)
            set_radius(network, 0.3)
            optimizer.zero_grad()
            logits = model(images)
            cross_entropy(logits, labels).backward()
            optimizer.step()
        return {
            "y": logits.detach(), "buffers": running_buffers(network),
            "gradients": {name: value.grad for name, value in network.named_parameters() if value.requires_grad},
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AverageCase:
    """Batch averages of running statistics over three batches."""

    norm: str
    variance: str = "within"

    def run(self, ranks, rank=None):
        model = LayerCase(norm=self.norm, layers=2).build(sync=rank is not None)
        batches = [draw(2 * ranks, CHANNELS, 3, 2, seed=seed) * (seed + 1) + seed for seed in range(3)]
        average_statistics(model, [select_part(batch, ranks, rank) for batch in batches], variance=self.variance)
        return running_buffers(model)


@dataclass(frozen=True)
class UnequalCase:
    """The error of a layer if rank r has r samples more than the first rank."""

    first: int = 1

    def run(self, ranks, rank):
        try:
            LayerCase().build(sync=True)(draw(self.first + rank, CHANNELS, 3, 2))
        except RuntimeError as error:
            return str(error)
        return "no error"


@dataclass(frozen=True)
class EmptyCase:
    """The statistics and gradients of a layer if no rank has a sample."""

    norm: str

    def run(self, ranks, rank):
        model = LayerCase(norm=self.norm).build(sync=True)
        model(draw(0, CHANNELS, 3, 2)).sum().backward()
        return running_buffers(model), [parameter.grad for parameter in model.parameters()]


def running_buffers(model):
    """All buffers but the number of batches, which only torch's layers count."""
    return {name: value for name, value in model.named_buffers() if not name.endswith("num_batches_tracked")}


def average_over_ranks(tensors):
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
