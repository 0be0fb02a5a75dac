"""Small trial configurations for all tasks, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study.config.schema import HEADS, TrialConfig

SIZE = 64
TASKS = {head: task for task, heads in HEADS.items() for head in heads}
NORMS = ("bn", "gn", "in", "ln", "sn", "ssn", "sn-shared", "sn-stage")


def build_config(head: str | None, **fields: Any) -> TrialConfig:
    """A small trial on scenes with the given head, or a classifier if it is None."""
    task = TASKS[head] if head else "classification"
    same = {"dataset": "scenes", "depth": 8, "width": 0.25, "batch_size": 2, "chunks": 1}
    return TrialConfig(**{**same, "task": task, "head": head, **fields})  # type: ignore[arg-type]


def build_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def build_targets(count: int = 2, objects: int = 3) -> list[dict[str, Tensor]]:
    """Detection targets for `count` images with `objects` square objects each."""
    corners = torch.arange(objects)[:, None] * 12.0 + torch.tensor([[4.0, 6.0]])
    boxes = torch.cat([corners, corners + 20], 1).reshape(-1, 4)
    masks = torch.zeros(objects, SIZE, SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return [{"boxes": boxes, "labels": torch.arange(objects) + 1, "masks": masks} for _ in range(count)]


def compute_training_loss(network: nn.Module, images: Tensor, objects: int = 3) -> Tensor:
    """The loss of a training pass of any task."""
    if hasattr(network, "roi_heads"):
        losses: dict[str, Tensor] = network(list(images), build_targets(len(images), objects))
        return torch.stack(list(losses.values())).sum()
    outputs = network(images)
    if isinstance(outputs, Tensor):
        return cross_entropy(outputs, torch.arange(len(images)) % 10)
    labels = torch.arange(SIZE) % 11
    return sum(
        cross_entropy(logits, labels.expand(len(images), SIZE, SIZE)) for logits in outputs if logits is not None
    )  # type: ignore[return-value]
