"""How big a cell's network is, what its record takes on disk, and how long its training will take here.

Of a few real steps on random images.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, cast

import torch

from study.config.datasets import DATASETS
from study.config.schema import TrialConfig
from study.data.batches import Batch
from study.models import build_network, trace_geometry
from study.plan.trials import PlannedTrial
from study.tasks import TASKS
from study.tasks.optimizers import build_optimizer

LARGEST_BATCH_PIXELS = 2**19  # a bigger batch is measured in part and scaled up
LARGEST_SIDE = 256  # pixels; so is a larger image
BUDGET_SECONDS = 1.0
STEPS = 3


@dataclass(frozen=True)
class CellSize:
    """Size and forecast of one trial of a cell."""

    parameters: int
    norm_layers: int
    checkpoint_bytes: int
    step_seconds: float
    seconds: float


# Bytes of the small files of a record, measured (text of an epoch's metrics; a row of packed switch weights); those of
# W&B hold the same once more, with its logs and pictures.
RECORD, EPOCH, SWITCH_EPOCH, SWITCH_ROW = 9_000, 600, 500, 4
WANDB, WANDB_EPOCH = 30_000, 2_500


def forecast_bytes(trial: PlannedTrial, size: CellSize, *, checkpoint_seconds: float, wandb: bool) -> int:
    """What a trial's folder will hold when it has ended: checkpoints, metrics, switch weights and W&B's copy.

    One that is shorter than the time between two checkpoints writes the last alone, and no previous one.
    """
    epochs, chooses = trial.config.epochs, len(trial.pool) > 1
    checkpoints = size.checkpoint_bytes * (2 if size.seconds > checkpoint_seconds else 1)
    rows = (epochs + 1) * size.norm_layers * 2 * len(trial.pool) if chooses else 0
    record = RECORD + epochs * (EPOCH + SWITCH_EPOCH * chooses) + SWITCH_ROW * rows
    return checkpoints + record + (WANDB + WANDB_EPOCH * epochs) * wandb


def measure_cell(trial: PlannedTrial) -> CellSize:
    """Parameters, norm layers and seconds of one trial on this machine's CPU, one thread."""
    config, facts = trial.config, DATASETS[trial.config.dataset]
    # What does not change the work is left out, so that cells that differ in it share one measurement.
    same: dict[str, object] = {"initialization": "he_normal", "logit_init": "ones", "epochs": 1, "train_samples": None,
                               "start_rule": "scratch", "start_source": None, "start_epoch": 0,
                               **dict.fromkeys(("fixed_gradient_batch", "epoch_steps"))}  # fmt: skip
    side = _measured_side(config)
    samples = max(LARGEST_BATCH_PIXELS // (side**2 * facts.channels), min(2, config.batch_size))  # 2 have a bn
    if config.gradient_batch > samples:  # a part of the batch is measured, and scaled up
        same |= {"chunks": samples, "batch_size": 1} if config.batch_size == 1 else {"chunks": 1, "batch_size": samples}
    measured = config.model_copy(update=same)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parameters, norm_layers, checkpoint, seconds = _measure(measured)
    finally:
        torch.set_num_threads(threads)
    step = seconds * config.gradient_batch / measured.gradient_batch * (facts.image_size / side) ** 2
    return CellSize(parameters, norm_layers, checkpoint, step, step * trial.steps)


@cache
def _measure(config: TrialConfig) -> tuple[int, int, int, float]:
    """Parameters, norm layers, bytes of a checkpoint, and seconds of one training step."""
    network = build_network(config, seed=0)
    norm_layers = len(trace_geometry(network))
    if config.task == "detection":
        _shrink_detector(network, config)
    module = TASKS[config.task](network, config, steps_per_epoch=1, seed=0)
    batch = _imagine_batch(config)
    optimizer = build_optimizer(network, config)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(module.compute_loss(*batch)[0])
        optimizer.step()
        return time.perf_counter() - started

    times = [step()]
    while len(times) <= STEPS and sum(times) < BUDGET_SECONDS:
        times.append(step())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters, norm_layers, _saved_bytes([network.state_dict(), optimizer.state_dict()]), min(times)


def _saved_bytes(state: object) -> int:
    """The size of the file that `torch.save` would write."""
    counter = _Counter()
    torch.save(state, cast("IO[bytes]", counter))
    return counter.count


class _Counter(io.RawIOBase):
    """A file that keeps nothing but its length."""

    count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.count += len(data)
        return len(data)


def _measured_side(config: TrialConfig) -> int:
    return min(DATASETS[config.dataset].image_size, LARGEST_SIDE)


def _shrink_detector(network: Any, config: TrialConfig) -> None:
    """Has a detector take images as they are, and as few regions, so that all of its work goes with the pixels."""
    share = (_measured_side(config) / DATASETS[config.dataset].image_size) ** 2
    network.transform.resizes = False
    sampler = network.roi_heads.fg_bg_sampler
    sampler.batch_size_per_image = max(1, round(share * sampler.batch_size_per_image))


def _imagine_batch(config: TrialConfig) -> Batch:
    """A gradient batch of noise, with one object in the middle of every image."""
    facts, samples = DATASETS[config.dataset], config.gradient_batch
    side = _measured_side(config)
    images = torch.randn(samples, facts.channels, side, side)
    if config.task == "classification":
        return images, torch.randint(facts.classes, (samples,))
    if config.task == "segmentation":
        return images, torch.randint(facts.pixel_classes or 1, (samples, side, side))
    low, high = side // 4, side - side // 4
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, low:high, low:high] = 1
    box = torch.tensor([[low, low, high, high]], dtype=torch.float32)
    return list(images), [{"boxes": box, "labels": torch.tensor([1]), "masks": mask}] * samples
