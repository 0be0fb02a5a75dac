"""Training of detectors: their random draws depend only on the seed and the step."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch

from study.data.in_memory import InMemoryTrainingLoader, LabeledImages
from study.data.loaders import WholeEpochs
from study.models import build_network
from study.tasks.detection import AveragePrecision, Detection
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
    trainer.fit(module, WholeEpochs(loader))
    return module.epoch_metrics["train_loss"]


def test_random_draws_depend_only_on_the_seed_and_the_step() -> None:
    assert _loss_of_an_epoch(state=1) == _loss_of_an_epoch(state=2)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("crowd", [False, True])
def test_detections_in_a_crowd_do_not_count(masks: bool, crowd: bool) -> None:
    boxes = torch.tensor([[2.0, 2, 12, 12], [20, 20, 60, 60]])
    found = torch.tensor([[22.0, 22, 30, 30], [40, 40, 52, 52], [2, 2, 12, 12]])  # two of the crowd, with high scores
    target = {"boxes": boxes, "labels": torch.ones(2).long(), "iscrowd": torch.tensor([0, int(crowd)])}
    detection = {"boxes": found, "labels": torch.ones(3).long(), "scores": torch.tensor([0.9, 0.8, 0.7])}
    if masks:
        target["masks"], detection["masks"] = fill(boxes), fill(found)
    metric = AveragePrecision(masks=masks)
    metric.update([detection], [target])
    values = metric.compute()
    for name in ("box_ap", "mask_ap") if masks else ("box_ap",):
        assert (values[name].item() == pytest.approx(1)) == crowd


def fill(boxes: torch.Tensor) -> torch.Tensor:
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks
