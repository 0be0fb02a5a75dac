"""Image classification with cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from study.config.datasets import DATASETS
from study.tasks.base import TrainingModule, build_mean


class Classification(TrainingModule):
    """Batches are images (N, C, H, W) and labels (N,); the network gives logits (N, classes)."""

    main_metric = "accuracy"

    def count_pending(self) -> int:
        return self.config.gradient_batch * DATASETS[self.config.dataset].classes

    def build_training_metrics(self) -> dict[str, Metric]:
        return {"accuracy": self._build_accuracy()}

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        return {"accuracy": self._build_accuracy(), "loss": build_mean()}

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Cross-entropy; logits and labels for the metrics."""
        logits = self.passes.forward(self.network, images)
        return cross_entropy(logits, targets), (logits.detach(), targets)

    def update_training_metrics(self, metrics: Any, outputs: Sequence[Tensor]) -> None:
        logits, labels = outputs
        metrics["accuracy"].update(logits.flatten(0, -2), labels.flatten())

    def update_evaluation_metrics(self, metrics: Any, images: Any, targets: Any) -> None:
        logits = self.passes.forward(self.network, images)
        metrics["accuracy"].update(logits, targets)
        metrics["loss"].update(cross_entropy(logits.float(), targets), weight=len(targets))

    def _build_accuracy(self) -> Metric:
        return MulticlassAccuracy(DATASETS[self.config.dataset].classes, average="micro", validate_args=False)
