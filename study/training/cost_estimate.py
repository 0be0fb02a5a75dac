"""Estimates what a trial costs: size of its network, bytes of its record, and duration, from a few real steps."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, cast

import torch
from torch.nn.functional import cross_entropy

from study.config.datasets import DATASETS
from study.config.schema import TrialConfig
from study.data.batches import Batch
from study.models import build_network, trace_geometry
from study.models.fused import FusedNetworks
from study.norms.kernels.dispatch import load_kernels
from study.plan.trials import PlannedTrial
from study.tasks import TASKS
from study.tasks.optimizers import build_optimizer

LARGEST_BATCH_PIXELS = 2**19  # of a larger batch a part is measured, and the time scaled up
LARGEST_SIDE = 256  # pixels; a larger image is measured at this size, and the time scaled up
BUDGET_SECONDS = 1.0
STEPS = 3

# Measured bytes of a record without checkpoints: its text files, an epoch of metrics, an epoch of switch weights, and a
# row of compressed switch weights; then those of a W&B run, which has a copy of the metrics, logs and figures.
RECORD, EPOCH, SWITCH_EPOCH, SWITCH_ROW = 9_000, 600, 500, 4
WANDB, WANDB_EPOCH = 30_000, 2_500


@dataclass(frozen=True)
class CellSize:
    """Size and estimated duration of one trial of a cell."""

    parameters: int
    norm_layers: int
    checkpoint_bytes: int
    step_seconds: float
    seconds: float


def measure_cell(trial: PlannedTrial, together: int = 1) -> CellSize:
    """Measures the size of a trial's network and its speed on one thread of this machine's CPU.

    together: number of trials that are trained as one; the times are each one's share.
    """
    config, dataset = trial.config, DATASETS[trial.config.dataset]
    # Fields that do not change the work get one value, so that cells that differ only in these share a measurement.
    same: dict[str, object] = {"initialization": "he_normal", "logit_init": "ones", "epochs": 1, "train_samples": None,
                               "start_rule": "scratch", "start_source": None, "start_epoch": 0,
                               "learning_rate": 1e-6, "decay": "constant", "warmup_epochs": 0.0,
                               **dict.fromkeys(("fixed_gradient_batch", "epoch_steps"))}  # fmt: skip
    side = _measured_side(config)
    # At least 2 samples, or the pool would have no bn.
    samples = max(LARGEST_BATCH_PIXELS // (side**2 * dataset.channels), min(2, config.batch_size))
    if config.gradient_batch > samples:
        same |= {"chunks": samples, "batch_size": 1} if config.batch_size == 1 else {"chunks": 1, "batch_size": samples}
    measured = config.model_copy(update=same)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parameters, norm_layers, checkpoint, seconds = _measure(measured, together)
    finally:
        torch.set_num_threads(threads)
    step = seconds * config.gradient_batch / measured.gradient_batch * (dataset.image_size / side) ** 2
    return CellSize(parameters, norm_layers, checkpoint, step, step * trial.steps)


def estimate_bytes(trial: PlannedTrial, size: CellSize, *, checkpoint_seconds: float, wandb: bool) -> int:
    """Estimated bytes of a finished trial's folder: checkpoints, metrics, switch weights and W&B's copy.

    A trial shorter than `checkpoint_seconds` writes only its last checkpoint, so that there is no previous one.
    """
    epochs, chooses = trial.config.epochs, len(trial.pool) > 1
    checkpoints = size.checkpoint_bytes * (2 if size.seconds > checkpoint_seconds else 1)
    rows = (epochs + 1) * size.norm_layers * 2 * len(trial.pool) if chooses else 0
    record = RECORD + epochs * (EPOCH + SWITCH_EPOCH * chooses) + SWITCH_ROW * rows
    return checkpoints + record + (WANDB + WANDB_EPOCH * epochs) * wandb


@cache
def _measure(config: TrialConfig, together: int) -> tuple[int, int, int, float]:
    """Parameters, norm layers, bytes of a checkpoint, and seconds of one training step on random images."""
    load_kernels("cpu")  # the first call on a machine compiles them, which must not be timed
    networks = [build_network(config, seed) for seed in range(together)]
    network = networks[0]
    norm_layers = len(trace_geometry(network))
    if config.task == "detection":
        _shrink_detector(network, config)
    module = TASKS[config.task](network, config, steps_per_epoch=1, seed=0)
    batch = _build_random_batch(config)
    optimizers = [build_optimizer(each, config) for each in networks]
    fused = FusedNetworks(networks) if together > 1 else None

    def step() -> float:
        started = time.perf_counter()
        for optimizer in optimizers:
            optimizer.zero_grad()
        if fused is None:
            torch.autograd.backward(module.compute_loss(*batch)[0])
        else:
            images: Any = batch[0]
            outputs = fused.forward(dict.fromkeys(range(together), images))
            fused.backward({number: cross_entropy(output, batch[1]) for number, output in outputs.items()})
        for optimizer in optimizers:
            optimizer.step()
        return (time.perf_counter() - started) / together

    times = [step()]
    while len(times) <= STEPS and together * sum(times) < BUDGET_SECONDS:
        times.append(step())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return parameters, norm_layers, _count_saved_bytes([state, optimizers[0].state_dict()]), min(times)


def _count_saved_bytes(state: object) -> int:
    """The size of the file that `torch.save` would write."""
    counter = _ByteCounter()
    torch.save(state, cast("IO[bytes]", counter))
    return counter.count


class _ByteCounter(io.RawIOBase):
    """A file that counts the bytes written to it and stores none."""

    count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.count += len(data)
        return len(data)


def _measured_side(config: TrialConfig) -> int:
    return min(DATASETS[config.dataset].image_size, LARGEST_SIDE)


def _shrink_detector(network: Any, config: TrialConfig) -> None:
    """Turns a detector's resizing off and scales its number of regions, so that all work is proportional to pixels."""
    share = (_measured_side(config) / DATASETS[config.dataset].image_size) ** 2
    network.transform.resizes = False
    sampler = network.roi_heads.fg_bg_sampler
    sampler.batch_size_per_image = max(1, round(share * sampler.batch_size_per_image))


def _build_random_batch(config: TrialConfig) -> Batch:
    """A gradient batch of random images, with one object in the middle of each."""
    dataset, samples = DATASETS[config.dataset], config.gradient_batch
    side = _measured_side(config)
    images = torch.randn(samples, dataset.channels, side, side)
    if config.task == "classification":
        return images, torch.randint(dataset.classes, (samples,))
    if config.task == "segmentation":
        return images, torch.randint(dataset.pixel_classes or 1, (samples, side, side))
    low, high = side // 4, side - side // 4
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, low:high, low:high] = 1
    box = torch.tensor([[low, low, high, high]], dtype=torch.float32)
    return list(images), [{"boxes": box, "labels": torch.tensor([1]), "masks": mask}] * samples
