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
    """Batches are images (N, C, H, W) and classes of pixels (N, H, W); pixels of class `IGNORED` do not count.

    The network returns logits (N, classes, H, W), and those of a second decoder in training with deep supervision.
    `miou` is the mean over classes of the intersection over union over a whole split, without classes that are neither
    present nor predicted.
    """

    main_metric = "miou"

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        classes = DATASETS[self.config.dataset].pixel_classes
        assert classes is not None, "the plan refuses a data set without pixel classes"
        return {"pixels": PixelMetrics(classes), "loss": build_mean()}

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Cross-entropy, plus `deep_supervision` times the cross-entropy of the second decoder.

        Each chunk of B samples has its own mean over pixels, and the loss is the mean over chunks, so that the loss of
        (G, B) does not depend on the number of devices.
        """
        logits, auxiliary = self(images)
        size = self.config.batch_size
        loss = _cross_entropy(logits, targets, size)
        if auxiliary is not None:
            loss = loss + self.config.deep_supervision * _cross_entropy(auxiliary, targets, size)
        return loss, ()

    def update_evaluation_metrics(self, metrics: Any, images: Any, targets: Any) -> None:
        logits, _ = self(images)
        counted = int((targets != IGNORED).sum())
        metrics["pixels"].update(logits.argmax(1), targets)
        metrics["loss"].update(_cross_entropy(logits, targets, len(targets)), weight=counted)


class PixelMetrics(Metric):
    """Mean intersection over union, and the accuracy of pixels, over a whole split.

    With deterministic algorithms, torchmetrics' own metrics allocate a confusion matrix for every pixel: 22,500 numbers
    for 150 classes, which is 29 GB for a small image.
    """

    confusion: Tensor  # (true class, predicted class)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Adds predicted and true classes of pixels, both (N, H, W)."""
        counted = targets != IGNORED
        pairs = targets[counted] * self.classes + predictions[counted]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """`miou` and `pixel_accuracy`, NaN where no pixel counts."""
        hits, rows, columns = self.confusion.diag().double(), self.confusion.sum(1), self.confusion.sum(0)
        unions = rows + columns - hits
        return {
            "miou": (hits / unions)[unions > 0].mean().float(),
            "pixel_accuracy": (hits.sum() / rows.sum()).float(),
        }


def _cross_entropy(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """The mean over chunks of `size` samples of their mean over pixels that count, 0 for a chunk without any."""
    losses = cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    sums, counts = (
        values.view(-1, size, *values.shape[1:]).flatten(1).sum(1) for values in (losses, targets != IGNORED)
    )
    return (sums / counts.clamp(min=1)).mean()
