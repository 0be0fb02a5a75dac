"""Training of detectors: their random draws depend only on the seed and the step."""

from __future__ import annotations

import lightning.pytorch as L
import torch

from study.data.in_memory import InMemoryTrainingLoader, LabeledImages
from study.models import build_network
from study.tasks.detection import Detection
from tests.models.samples import SIZE, build_config, build_images


def _loss_of_an_epoch(state: int) -> float:
    """The loss of two steps on two images each, after the global generator was seeded with `state`."""
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 4:30, 6:24], masks[:, 32:60, 30:50] = 1, 2
    data = LabeledImages(images=build_images(4), labels=torch.tensor([[1, 2]] * 4), masks=masks)
    config = build_config("faster_rcnn", norm="sn")  # batches without micro-batches
    loader = InMemoryTrainingLoader(data, 2, augmentation="none", seed=0, task="detection")
    module = Detection(build_network(config, 0), config, steps_per_epoch=2, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(state)
    trainer.fit(module, loader)
    return module.epoch_metrics["train_loss"]


def test_random_draws_depend_only_on_the_seed_and_the_step() -> None:
    assert _loss_of_an_epoch(state=1) == _loss_of_an_epoch(state=2)
