"""Small data sets live whole in the device's memory; batches are cut and augmented there, many images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import masks_to_boxes

from study.config.schema import Task, TrialConfig
from study.config.seeds import derive_seed
from study.data.batches import Batch, SplitName, epoch_order

EVALUATION_BATCH = {"classification": 512, "segmentation": 64, "detection": 32}
SHIFT = 1 / 8  # of the image's width: 4 pixels at 32x32, 1 at 8x8


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images (N, C, H, W) and their labels (N,), or the masks and labels of the objects in them.

    masks: (N, H, W), uint8: 0 is ground, k the k-th object.
    labels: of objects (N, M) from 1; 0 is no object.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> Images:
        return self._map(lambda tensor: tensor[indices])

    def to(self, device: torch.device) -> Images:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Images:
        masks = None if self.masks is None else change(self.masks)
        return Images(images=change(self.images), labels=change(self.labels), masks=masks)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test images, normalized by the training split's mean and standard deviation."""

    train: Images
    validation: Images
    test: Images

    def to(self, device: torch.device) -> Splits:
        return Splits(train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device))


class MemoryData:
    """A trial's `Data` from splits in memory."""

    set_aside: Sequence[str] = ()

    def __init__(self, splits: Splits, config: TrialConfig, seed: int) -> None:
        self.splits, self.config, self.seed = splits, config, seed

    def to(self, device: torch.device) -> MemoryData:
        return MemoryData(self.splits.to(device), self.config, self.seed)

    def training(self, augmentation: str, part: tuple[int, int] = (0, 1)) -> TrainingLoader:
        return TrainingLoader(
            self.splits.train, self.config.gradient_batch, augmentation=augmentation, seed=self.seed, part=part,
            steps=self.config.epoch_steps, task=self.config.task,
        )  # fmt: skip

    def evaluation(self, split: SplitName, part: tuple[int, int] = (0, 1)) -> EvaluationLoader:
        task = self.config.task
        return EvaluationLoader(getattr(self.splits, split), EVALUATION_BATCH[task], part=part, task=task)


class TrainingLoader:
    """Batches of one epoch, in an order and with an augmentation that depend on (seed, epoch, index) alone.

    The draws of an image do not depend on the batch it falls into, so cells of different batch size see the same
    images, and a resumed run the same as an uninterrupted one. Masks move as their images do. The incomplete last batch
    is dropped. Lightning asks for `state_dict` at a checkpoint, and a loader that was given it goes on with the batch
    that follows.

    part: (r, R) takes the r-th of R equal consecutive parts of every batch.
    steps: of an epoch; None: once through the data.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        *,
        augmentation: str,
        seed: int,
        part: tuple[int, int] = (0, 1),
        steps: int | None = None,
        task: Task = "classification",
    ) -> None:
        self.data, self.batch_size, self.seed, self.epoch, self.task = data, batch_size, seed, 0, task
        self.part, self.steps, self.first, self.drawn = part, steps, 0, 0
        self.flips = augmentation == "shift_flip"
        size = data.images.shape[-1]
        self.reach = 0 if augmentation == "none" else max(1, round(SHIFT * size))
        self.images = _windows(data.images, self.reach)
        self.masks = None if data.masks is None else _windows(data.masks[:, None], self.reach)

    def __len__(self) -> int:
        return self.steps or len(self.data) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Must be called before the epoch's first batch is drawn."""
        self.epoch, self.first = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.first = state_dict["epoch"], state_dict["batch"]

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is drawn before the first batch, so that set_epoch comes in time after a resume too.
        device, n = self.data.labels.device, len(self.data)
        count = self.steps * self.batch_size if self.steps else None
        order = epoch_order(n, self.epoch, self.seed, count).to(device)
        generator = torch.Generator().manual_seed(derive_seed("augmentation", self.seed, self.epoch))
        down, right = torch.randint(2 * self.reach + 1, (2, n), generator=generator).to(device)
        flip = (torch.rand(n, generator=generator) < 0.5).to(device)
        (part, parts), (first, self.first) = self.part, (self.first, 0)
        size = self.batch_size // parts
        for index in range(first, len(self)):
            start = index * self.batch_size + part * size
            batch = order[start : start + size]
            self.drawn = index + 1
            where = batch, slice(None), down[batch], right[batch]
            flipped = flip[batch, None, None, None] if self.flips else None
            images = _cut(self.images, where, flipped)
            masks = None if self.masks is None else _cut(self.masks, where, flipped)[:, 0]
            yield make_batch(self.task, images, self.data.labels[batch], masks)


class EvaluationLoader:
    """Every image once, in order, as it is.

    part: (r, R) takes the r-th of every R batches; the last one may be empty, so that all parts are of one length.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int = EVALUATION_BATCH["classification"],
        part: tuple[int, int] = (0, 1),
        task: Task = "classification",
    ) -> None:
        self.data, self.batch_size, self.part, self.task = data, batch_size, part, task

    def __len__(self) -> int:
        return -(-len(self.data) // (self.batch_size * self.part[1]))

    def __iter__(self) -> Iterator[Batch]:
        part, parts = self.part
        for index in range(len(self)):
            start = (index * parts + part) * self.batch_size
            batch = self.data.take(slice(start, start + self.batch_size))
            yield make_batch(self.task, batch.images, batch.labels, batch.masks)


def make_batch(task: Task, images: Tensor, labels: Tensor, masks: Tensor | None) -> Batch:
    """What a task learns from of the same images: labels, classes of pixels, or objects."""
    if task == "classification":
        return images, labels
    assert masks is not None
    if task == "segmentation":
        return images, pad(labels, (1, 0)).gather(1, masks.flatten(1).long()).view(masks.shape)
    return list(images), _find_objects(labels, masks)


def _find_objects(labels: Tensor, masks: Tensor) -> list[dict[str, Tensor]]:
    """Boxes, labels and a mask each, of the objects of every image that are in view."""
    numbers = torch.arange(1, labels.shape[1] + 1, device=masks.device)
    each = masks[:, None] == numbers[:, None, None]  # (N, M, H, W)
    seen = each.flatten(2).any(2)
    parts = seen.sum(1).tolist()
    shapes = each[seen]
    boxes = masks_to_boxes(shapes)
    boxes[:, 2:] += 1  # from the last pixel to its far edge: a box one pixel wide has an area
    columns = (torch.split(column, parts) for column in (boxes, labels[seen], shapes.to(torch.uint8)))
    return [{"boxes": box, "labels": label, "masks": mask} for box, label, mask in zip(*columns, strict=True)]


def _windows(images: Tensor, reach: int) -> Tensor:
    """A view of every shifted window of every padded image: (N, C, 2 reach + 1, 2 reach + 1, H, W).

    Edges are repeated: a border of any one grey would be seen in training and never in evaluation.
    """
    size = images.shape[-1]
    padded = torch.arange(-reach, size + reach, device=images.device).clamp(0, size - 1)
    return images.index_select(2, padded).index_select(3, padded).unfold(2, size, 1).unfold(3, size, 1)


def _cut(windows: Tensor, where: tuple[Tensor | slice, ...], flipped: Tensor | None) -> Tensor:
    images = windows[where]
    return images if flipped is None else torch.where(flipped, images.flip(-1), images)
