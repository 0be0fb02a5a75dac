"""A training step of whole networks, with every norm: what choosing a normalizer costs a study.

And inference of a network that has made its choices, hardened: what that saves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from study.bench.result import Figure, Result
from study.bench.timing import Seconds, alternate, median, ratio
from study.config.datasets import DATASETS
from study.config.schema import TrialConfig
from study.models import build_network
from study.norms import SparseSwitchNorm2d, harden, set_radius
from study.norms.kernels.dispatch import plain_norms
from study.norms.layers import SwitchNorm
from study.tasks.optimizers import build_optimizer

# bn is torch's own layer over the whole batch, bn (G, B) takes its statistics over chunks, as the others do.
NORMS = ("bn", "bn (G, B)", "sn", "ssn", "sn plain")
# depth, data set, pixels, (G, B)
HARD_CHOICES = {"bn in every layer": (2,), "in, ln and bn by turns": (0, 1, 2)}  # places in the pool
CELLS = ((20, "cifar10", 32, (8, 2)), (20, "cifar10", 32, (8, 16)), (18, "imagenet", 64, (8, 2)))
STEP_BAR = 1.05


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Forward, loss, backward and SGD with momentum, on random images, all norms by turns in one process."""
    if threads:
        torch.set_num_threads(threads)
    result = Result("step")
    for depth, dataset, pixels, batch in CELLS[:1] if quick else CELLS:
        if device == "cuda" and depth == 18:
            pixels = 224
        contenders = {name: _stepper(name, depth, dataset, pixels, batch, device) for name in NORMS}
        times = _alternate(contenders, quick, device)
        row: dict[str, Any] = {"network": f"ResNet-{depth}, {pixels}x{pixels}", "(G, B)": str(batch)}
        row |= {name: 1000 * median(times[name]) for name in NORMS}
        row["sn / bn"], row["ssn / bn"] = ratio(times, "sn", "bn"), ratio(times, "ssn", "bn")
        row["plain / sn"] = ratio(times, "sn plain", "sn")
        result.rows.append(row)
    for row in result.rows:
        bar = STEP_BAR if row["network"].startswith("ResNet-20") else None
        result.figures.append(Figure(f"sn / bn, {row['network']}, {row['(G, B)']}", row["sn / bn"], bar))
    result.figures.append(Figure("ssn / bn, median", statistics.median(row["ssn / bn"] for row in result.rows)))
    for title, places in HARD_CHOICES.items():
        network, images = _decided(CELLS[0], places, device)
        times = _alternate(
            {"sn": partial(network, images), "hardened": partial(harden(network), images)}, quick, device
        )
        result.figures.append(Figure(f"hardened / sn, inference, ResNet-20, {title}", ratio(times, "hardened", "sn")))
    result.notes.append(f"{torch.get_num_threads()} threads. ms a step; ratios: median over rounds.")
    return result


def _stepper(
    name: str, depth: int, dataset: str, pixels: int, batch: tuple[int, int], device: str
) -> Callable[[], object]:
    chunks, samples = (1, batch[0] * batch[1]) if name == "bn" else batch
    config = TrialConfig(dataset=dataset, depth=depth, norm=name.split()[0], chunks=chunks, batch_size=samples)
    network = build_network(config, seed=0).to(device).train()
    optimizer = build_optimizer(network, config)
    facts = DATASETS[dataset]
    images = torch.randn(config.gradient_batch, facts.channels, pixels, pixels, device=device)
    labels = torch.randint(facts.classes, (config.gradient_batch,), device=device)
    sparse = any(isinstance(module, SparseSwitchNorm2d) for module in network.modules())

    def step() -> None:
        with plain_norms() if name == "sn plain" else nullcontext():
            if sparse:
                set_radius(network, 0.5)
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(images), labels))
            optimizer.step()

    return step


def _decided(cell: tuple[int, str, int, tuple[int, int]], places: tuple[int, ...], device: str) -> Any:
    """An sn network with one-hot choices, a layer after the other from `places`, and images."""
    depth, dataset, pixels, (chunks, samples) = cell
    network = build_network(TrialConfig(dataset=dataset, depth=depth, norm="sn"), seed=0).to(device).eval()
    layers = [module for module in network.modules() if isinstance(module, SwitchNorm)]
    for layer, place in zip(layers, cycle(places), strict=False):
        choice = torch.eye(len(layer.pool))[place]
        layer.fix_weights(choice, choice)
    images = torch.randn(chunks * samples, DATASETS[dataset].channels, pixels, pixels, device=device)
    return network.requires_grad_(False), images.to(memory_format=torch.channels_last)


def _alternate(contenders: Mapping[str, Callable[[], object]], quick: bool, device: str) -> Seconds:
    seconds, rounds = (0.5, 3) if quick else (10.0, 21)
    synchronize = torch.cuda.synchronize if device == "cuda" else _nothing
    return alternate(contenders, seconds=seconds, rounds=rounds, synchronize=synchronize)


def _nothing() -> None:
    """The CPU has finished when a call returns."""
