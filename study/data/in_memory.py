"""Data sets that are held in memory, on the trial's device, where whole batches are augmented at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import masks_to_boxes

from study.config.datasets import DATASETS
from study.config.schema import Task, TrialConfig
from study.config.seeds import derive_seed
from study.data.batches import Batch
from study.data.fingerprint import build_fingerprint
from study.data.loaders import Shard, SplitName, TrainingLoader, split_evaluation

EVALUATION_BATCH_SIZES: dict[Task, int] = {"classification": 512, "segmentation": 64, "detection": 32}
SHIFT = 1 / 8  # largest shift as a fraction of the image's width: 4 pixels at 32x32, 1 at 8x8


@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images (N, C, H, W) and their labels (N,), or the masks and labels of the objects in them.

    masks: (N, H, W), uint8: 0 is background, k the k-th object.
    labels: of objects (N, M), from 1; 0 means no object.
    unpublished: the files that they were read from whose content is not that of the published data set, with the
        SHA-256 of their content.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    unpublished: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> LabeledImages:
        return self._map(lambda tensor: tensor[indices])

    def to(self, device: torch.device) -> LabeledImages:
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> LabeledImages:
        masks = None if self.masks is None else change(self.masks)
        return replace(self, images=change(self.images), labels=change(self.labels), masks=masks)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test images, normalized by the mean and standard deviation of the training split."""

    train: LabeledImages
    validation: LabeledImages
    test: LabeledImages

    def to(self, device: torch.device) -> Splits:
        return Splits(train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device))


class InMemoryData:
    """The `TrialData` of a data set that is held in memory."""

    set_aside: Sequence[str] = ()

    def __init__(self, splits: Splits, config: TrialConfig, seed: int) -> None:
        self.splits, self.config, self.seed = splits, config, seed

    @property
    def notes(self) -> list[str]:
        files = {**self.splits.train.unpublished, **self.splits.test.unpublished}
        return [f"{file}: not the published content (run.own_data)" for file in files]

    @property
    def fingerprint(self) -> dict[str, str]:
        return describe_images(self.config.dataset, self.splits.train, self.splits.test)

    def to(self, device: torch.device) -> InMemoryData:
        return InMemoryData(self.splits.to(device), self.config, self.seed)

    def build_training_loader(self, augmentation: str, shard: Shard = (0, 1)) -> InMemoryTrainingLoader:
        return InMemoryTrainingLoader(
            self.splits.train, self.config.gradient_batch, augmentation=augmentation, seed=self.seed, shard=shard,
            steps=self.config.epoch_steps, task=self.config.task,
        )  # fmt: skip

    def build_evaluation_loader(self, split: SplitName, shard: Shard = (0, 1)) -> InMemoryEvaluationLoader:
        images: LabeledImages = getattr(self.splits, split)
        task = self.config.task
        return InMemoryEvaluationLoader(images, EVALUATION_BATCH_SIZES[task], shard=shard, task=task)


def describe_images(dataset: str, train: LabeledImages, test: LabeledImages | None) -> dict[str, str]:
    """The data set whose files were read, and its fingerprint: that of the files with other than published content."""
    digests = {**train.unpublished, **(test.unpublished if test else {})}
    name = DATASETS[dataset].glyphs or dataset
    return {name: build_fingerprint(digest.encode() for digest in digests.values())}


class InMemoryTrainingLoader(TrainingLoader):
    """A `TrainingLoader` of images in memory.

    The random numbers of an image do not depend on the batch that it falls into, so cells of different batch sizes see
    the same images. Masks are augmented like their images.
    """

    def __init__(
        self,
        data: LabeledImages,
        batch_size: int,
        *,
        augmentation: str,
        seed: int,
        shard: Shard = (0, 1),
        steps: int | None = None,
        task: Task = "classification",
    ) -> None:
        super().__init__(len(data), batch_size, steps=steps, seed=seed, shard=shard)
        self.data, self.task = data, task
        self.flips = augmentation == "shift_flip"
        width = data.images.shape[-1]
        self.max_shift = 0 if augmentation == "none" else max(1, round(SHIFT * width))
        self.images = _view_shifted(data.images, self.max_shift)
        self.masks = None if data.masks is None else _view_shifted(data.masks[:, None], self.max_shift)

    def draw_batches(self, first: int) -> Iterator[Batch]:
        device, n = self.data.labels.device, len(self.data)
        order = self.draw_order().to(device)
        generator = torch.Generator().manual_seed(derive_seed("augmentation", self.seed, self.epoch))
        down, right = torch.randint(2 * self.max_shift + 1, (2, n), generator=generator).to(device)
        flip = (torch.rand(n, generator=generator) < 0.5).to(device)
        rank, ranks = self.shard
        size = self.batch_size // ranks
        for index in range(first, len(self)):
            start = index * self.batch_size + rank * size
            batch = order[start : start + size]
            where = batch, slice(None), down[batch], right[batch]
            flipped = flip[batch, None, None, None] if self.flips else None
            images = _cut(self.images, where, flipped)
            masks = None if self.masks is None else _cut(self.masks, where, flipped)[:, 0]
            yield build_batch(self.task, images, self.data.labels[batch], masks)


class InMemoryEvaluationLoader:
    """Yields every image once, in order and without augmentation."""

    def __init__(
        self,
        data: LabeledImages,
        batch_size: int = EVALUATION_BATCH_SIZES["classification"],
        shard: Shard = (0, 1),
        task: Task = "classification",
    ) -> None:
        self.data, self.task = data, task
        self.batches = split_evaluation(len(data), batch_size, shard)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.batches:
            batch = self.data.take(slice(indices.start, indices.stop))
            yield build_batch(self.task, batch.images, batch.labels, batch.masks)


def build_batch(task: Task, images: Tensor, labels: Tensor, masks: Tensor | None) -> Batch:
    """A batch in the layout of the task (study/data/batches.py) from images and their labels or objects."""
    if task == "classification":
        return images, labels
    assert masks is not None
    if task == "segmentation":
        return images, pad(labels, (1, 0)).gather(1, masks.flatten(1).long()).view(masks.shape)
    return list(images), _build_detection_targets(labels, masks)


def _build_detection_targets(labels: Tensor, masks: Tensor) -> list[dict[str, Tensor]]:
    """For every image, the box, label and mask of each object that is visible."""
    numbers = torch.arange(1, labels.shape[1] + 1, device=masks.device)
    separate = masks[:, None] == numbers[:, None, None]  # (N, M, H, W)
    visible = separate.flatten(2).any(2)
    counts = visible.sum(1).tolist()
    shapes = separate[visible]
    boxes = masks_to_boxes(shapes)
    boxes[:, 2:] += 1  # from the index of the last pixel to its far edge, so that a box one pixel wide has an area
    columns = (torch.split(column, counts) for column in (boxes, labels[visible], shapes.to(torch.uint8)))
    return [{"boxes": box, "labels": label, "masks": mask} for box, label, mask in zip(*columns, strict=True)]


def _view_shifted(images: Tensor, max_shift: int) -> Tensor:
    """A view of every shifted window of every padded image: (N, C, 2 max_shift + 1, 2 max_shift + 1, H, W).

    Padding repeats the edge, because a border of a fixed grey would occur in training and never in evaluation.
    """
    size = images.shape[-1]
    padded = torch.arange(-max_shift, size + max_shift, device=images.device).clamp(0, size - 1)
    return images.index_select(2, padded).index_select(3, padded).unfold(2, size, 1).unfold(3, size, 1)


def _cut(windows: Tensor, where: tuple[Tensor | slice, ...], flipped: Tensor | None) -> Tensor:
    """The windows (N, C, H, W) at the given indices, mirrored where `flipped` (N, 1, 1, 1) is true."""
    images = windows[where]
    return images if flipped is None else torch.where(flipped, images.flip(-1), images)
