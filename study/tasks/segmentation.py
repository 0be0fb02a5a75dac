"""Semantic segmentation with cross-entropy over pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from study.config.datasets import DATASETS
from study.data.batches import IGNORED
from study.tasks.base import TrainingModule, build_mean


class Segmentation(TrainingModule):
    """Batches are images (N, C, H, W) and classes of pixels (N, H, W), of which `IGNORED` ones do not count.

    The network gives logits (N, classes, H, W), in training with deep supervision also those of a second decoder.
    `miou` is the mean over classes of a whole split's intersection over union; classes that are neither there nor
    predicted are left out.
    """

    main_metric = "miou"

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        classes = DATASETS[self.config.dataset].pixel_classes
        assert classes is not None, "refused by the plan"
        return {"pixels": PixelMetrics(classes), "loss": build_mean()}

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Cross-entropy, and `deep_supervision` times that of the second decoder.

        The mean over every B samples, which a device would have, and of those: (G, B) is the same on any devices.
        """
        logits, auxiliary = self(images)
        size = self.config.batch_size
        loss = _cross_entropy(logits, targets, size)
        if auxiliary is not None:
            loss = loss + self.config.deep_supervision * _cross_entropy(auxiliary, targets, size)
        return loss, ()

    def update_evaluation(self, metrics: Any, images: Any, targets: Any) -> None:
        logits, _ = self(images)
        counted = int((targets != IGNORED).sum())
        metrics["pixels"].update(logits.argmax(1), targets)
        metrics["loss"].update(_cross_entropy(logits, targets, len(targets)), weight=counted)


class PixelMetrics(Metric):
    """Mean intersection over union, and the accuracy of pixels, over a whole split.

    With deterministic algorithms torchmetrics' own count as many numbers a pixel as a confusion matrix has: 22,500 for
    150 classes, 29 GB for a small image.
    """

    confusion: Tensor  # (true, predicted)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Takes in classes of pixels, both (N, H, W)."""
        counted = targets != IGNORED
        pairs = targets[counted] * self.classes + predictions[counted]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """By `miou` and `pixel_accuracy`; NaN where no pixel counts."""
        hits, rows, columns = self.confusion.diag().double(), self.confusion.sum(1), self.confusion.sum(0)
        unions = rows + columns - hits
        return {
            "miou": (hits / unions)[unions > 0].mean().float(),
            "pixel_accuracy": (hits.sum() / rows.sum()).float(),
        }


def _cross_entropy(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """The mean over the pixels that count of every `size` samples, 0 where none does, and the mean of those."""
    losses = cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    sums, counts = (
        values.view(-1, size, *values.shape[1:]).flatten(1).sum(1) for values in (losses, targets != IGNORED)
    )
    return (sums / counts.clamp(min=1)).mean()
