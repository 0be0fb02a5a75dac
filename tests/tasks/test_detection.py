"""Training of detectors: what they draw, they draw by counters."""

from __future__ import annotations

import lightning.pytorch as L
import torch

from study.data.in_memory import InMemoryTrainingLoader, LabeledImages
from study.models import build_network
from study.tasks.detection import Detection
from tests.models.samples import SIZE, build_config, build_images


def _loss_of_an_epoch(state: int) -> float:
    """Two steps on two images each; `state` is what the global generator was seeded with before them."""
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 4:30, 6:24], masks[:, 32:60, 30:50] = 1, 2
    data = LabeledImages(images=build_images(4), labels=torch.tensor([[1, 2]] * 4), masks=masks)
    config = build_config("faster_rcnn", norm="sn")  # a batch of one part
    loader = InMemoryTrainingLoader(data, 2, augmentation="none", seed=0, task="detection")
    module = Detection(build_network(config, 0), config, steps_per_epoch=2, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(state)
    trainer.fit(module, loader)
    return module.epoch_metrics["train_loss"]


def test_what_is_drawn_depends_on_the_seed_and_the_step_alone() -> None:
    assert _loss_of_an_epoch(state=1) == _loss_of_an_epoch(state=2)
