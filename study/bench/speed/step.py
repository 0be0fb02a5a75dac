"""Training steps of whole networks with every norm, and inference of hardened networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study.bench.result import Figure, Result
from study.bench.timing import Contenders, Seconds, median_ratio, time_in_turns
from study.config.datasets import DATASETS
from study.config.schema import TrialConfig
from study.models import build_network
from study.norms import SparseSwitchNorm2d, harden, set_radius
from study.norms.kernels.dispatch import plain_norms
from study.norms.layers import SwitchNorm
from study.tasks.optimizers import build_optimizer

# bn is torch's own layer over the whole batch; bn (G, B) takes its statistics over chunks, as the switch norms do.
NORMS = ("bn", "bn (G, B)", "sn", "ssn", "sn plain")
HARD_CHOICES = {"bn in every layer": (2,), "in, ln and bn by turns": (0, 1, 2)}  # indices into the pool


class Cell(NamedTuple):
    """A network, the size of its images, and its batch."""

    depth: int
    dataset: str
    pixels: int
    batch: tuple[int, int]  # (G, B)


CELLS = (
    Cell(20, "cifar10", 32, (8, 2)), Cell(20, "cifar10", 32, (8, 16)), Cell(18, "imagenet", 64, (8, 2)),
)  # fmt: skip
GPU_PIXELS = {20: 32, 18: 224}
STEP_BAR = 1.05


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Times forward, loss, backward and SGD with momentum on random images, alternating between all norms."""
    if threads:
        torch.set_num_threads(threads)
    result = Result("step")
    for cell in CELLS[:1] if quick else CELLS:
        _measure_training(result, cell, quick, device)
    result.figures.append(Figure("ssn / bn, median", statistics.median(row["ssn / bn"] for row in result.rows)))
    for title, choices in HARD_CHOICES.items():
        network, images = _build_one_hot_network(choices, device)
        contenders = {"sn": partial(network, images), "hardened": partial(harden(network), images)}
        ratio = median_ratio(_time(contenders, quick, device), "hardened", "sn")
        result.figures.append(Figure(f"hardened / sn, inference, ResNet-20, {title}", ratio))
    result.notes.append(f"{torch.get_num_threads()} threads. Milliseconds per step; ratios are medians over rounds.")
    return result


def _measure_training(result: Result, cell: Cell, quick: bool, device: str) -> None:
    """Adds a row with the time of a training step with every norm, and its figure."""
    if device == "cuda":
        cell = cell._replace(pixels=GPU_PIXELS[cell.depth])
    times = _time({norm: _build_step(norm, cell, device) for norm in NORMS}, quick, device)
    ratio = median_ratio(times, "sn", "bn")
    network = f"ResNet-{cell.depth}, {cell.pixels}x{cell.pixels}"
    result.rows.append({
        "network": network, "(G, B)": str(cell.batch),
        **{norm: 1000 * statistics.median(times[norm]) for norm in NORMS},
        "sn / bn": ratio, "ssn / bn": median_ratio(times, "ssn", "bn"),
        "plain / sn": median_ratio(times, "sn plain", "sn"),
    })  # fmt: skip
    bar = STEP_BAR if cell.depth == 20 else None
    result.figures.append(Figure(f"sn / bn, {network}, {cell.batch}", ratio, bar))


def _build_step(norm: str, cell: Cell, device: str) -> Callable[[], object]:
    """Builds a network and its optimizer; returns a function that does one training step."""
    chunks, samples = (1, cell.batch[0] * cell.batch[1]) if norm == "bn" else cell.batch
    config = TrialConfig(
        dataset=cell.dataset, depth=cell.depth, norm=norm.split()[0], chunks=chunks, batch_size=samples
    )  # fmt: skip
    network = build_network(config, seed=0).to(device).train()
    optimizer = build_optimizer(network, config)
    dataset = DATASETS[cell.dataset]
    images = torch.randn(config.gradient_batch, dataset.channels, cell.pixels, cell.pixels, device=device)
    labels = torch.randint(dataset.classes, (config.gradient_batch,), device=device)
    sparse = any(isinstance(module, SparseSwitchNorm2d) for module in network.modules())

    def step() -> None:
        with plain_norms() if norm == "sn plain" else nullcontext():
            if sparse:
                set_radius(network, 0.5)
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(images), labels))
            optimizer.step()

    return step


def _build_one_hot_network(choices: tuple[int, ...], device: str) -> tuple[nn.Module, Tensor]:
    """An sn network whose layers choose one normalizer each, `choices` (indices into the pool) in turn; and images."""
    cell = CELLS[0]
    config = TrialConfig(dataset=cell.dataset, depth=cell.depth, norm="sn")
    network = build_network(config, seed=0).to(device).eval()
    layers = [module for module in network.modules() if isinstance(module, SwitchNorm)]
    for layer, choice in zip(layers, cycle(choices), strict=False):
        weights = torch.eye(len(layer.pool))[choice]
        layer.fix_weights(weights, weights)
    chunks, samples = cell.batch
    images = torch.randn(chunks * samples, DATASETS[cell.dataset].channels, cell.pixels, cell.pixels, device=device)
    return network.requires_grad_(False), images.to(memory_format=torch.channels_last)


def _time(contenders: Contenders, quick: bool, device: str) -> Seconds:
    seconds, rounds = (0.5, 3) if quick else (10.0, 21)
    return time_in_turns(contenders, seconds=seconds, rounds=rounds, device=device)
