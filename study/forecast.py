"""How big a cell's network is, and how long its training will take here: a few real steps on random images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import cross_entropy

from study.config import TrialConfig
from study.data.catalog import DATASETS
from study.models import build_network, trace_geometry
from study.plan import PlannedTrial
from study.tasks.optimization import build_optimizer

LARGEST_BATCH_PIXELS = 2**19  # a bigger batch is measured in part and scaled up
BUDGET_SECONDS = 1.0
STEPS = 3


@dataclass(frozen=True)
class CellSize:
    """Size and forecast of one trial of a cell."""

    parameters: int
    norm_layers: int
    step_seconds: float
    seconds: float


def measure_cell(trial: PlannedTrial) -> CellSize:
    """Parameters, norm layers and seconds of one trial on this machine's CPU, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # What does not change the work is left out, so that cells that differ in it share one measurement.
        same = {"initialization": "he_normal", "logit_init": "ones", "epochs": 1, "train_samples": None}
        parameters, norm_layers, step = _measure(trial.config.model_copy(update=same))
    finally:
        torch.set_num_threads(threads)
    return CellSize(parameters, norm_layers, step, step * trial.steps)


@cache
def _measure(config: TrialConfig) -> tuple[int, int, float]:
    network = build_network(config, seed=0)
    norm_layers = len(trace_geometry(network))
    facts = DATASETS[config.dataset]
    pixels = facts.image_size**2 * facts.channels
    parts = config.chunks if config.gradient_batch * pixels > LARGEST_BATCH_PIXELS else 1
    if parts > 1:  # one chunk of B samples is measured, and counts G times
        network = build_network(config.model_copy(update={"chunks": 1}), seed=0)
    batch = config.gradient_batch // parts
    images = torch.randn(batch, facts.channels, facts.image_size, facts.image_size)
    labels = torch.randint(facts.classes, (batch,))
    optimizer = build_optimizer(network, config)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(network(images), labels))
        optimizer.step()
        return time.perf_counter() - started

    times = [step()]
    while len(times) <= STEPS and sum(times) < BUDGET_SECONDS:
        times.append(step())
    return sum(parameter.numel() for parameter in network.parameters()), norm_layers, min(times) * parts
