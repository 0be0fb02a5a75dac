"""Reads, augments and collates the batches of a streamed data set, in a worker process or in the trial's own."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from study.config.schema import TrialConfig
from study.config.seeds import derive_seed
from study.data.batches import IGNORED, Batch
from study.data.image_files import SampleSource
from study.data.loaders import Shard
from study.data.transforms import build_evaluation_transform, build_training_transform

MAX_TRIES = 100  # consecutive unusable samples after which the disk, and not the files, is taken to be broken
STRIDE = 8  # the height and width of padded images are multiples of it
# Errors caused by a single file. None: a decoding error, which Pillow raises without an errno.
FILE_ERRNOS = (None, errno.ENOENT, errno.EACCES, errno.EISDIR, errno.EIO)


@dataclass(frozen=True, kw_only=True)
class SampleSubset:
    """A split of a trial: the indices of its samples in a published split, in order."""

    source: SampleSource
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def select_targets(self, config: TrialConfig, *, training: bool) -> SampleSubset:
        return replace(self, source=self.source.select_targets(config, training=training))


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """One batch: the numbers of its samples within the split, and the part of them that the device takes."""

    epoch: int
    samples: Sequence[int]
    shard: Shard


@dataclass(frozen=True, kw_only=True)
class BatchReader(Dataset[tuple[Batch | None, list[str]]]):
    """Makes a batch from a request. The result depends only on the request.

    In training a sample that cannot be used is replaced by the next one in the split; in evaluation (`augmentation` is
    None) it is left out. Together with a batch come the lines that name such samples and the reason. The batch is None
    if `MAX_TRIES` samples in a row could not be used.
    """

    samples: SampleSubset
    config: TrialConfig
    seed: int
    augmentation: str | None

    def __getitem__(self, request: BatchRequest) -> tuple[Batch | None, list[str]]:
        numbers, unusable = request.samples, list[str]()
        (rank, ranks), task = request.shard, self.config.task
        size = len(numbers) // ranks
        own = slice(rank * size, (rank + 1) * size)
        # Images of different sizes are padded to the largest of the whole batch, so every device must read all of it.
        needs_all = task == "segmentation" and self.augmentation in ("none", "scale_flip")
        if not needs_all:
            numbers, own = numbers[own], slice(None)
        found = [self._read_usable(request.epoch, number, unusable) for number in numbers]
        if self.augmentation is not None and None in found:
            return None, unusable
        images, targets = collate([sample for sample in found if sample is not None], task)
        return (images[own], targets[own]), unusable

    def _read_usable(self, epoch: int, number: int, unusable: list[str]) -> tuple[Tensor, Any] | None:
        """The augmented sample, or in training the next one that can be used."""
        for attempt in range(MAX_TRIES if self.augmentation is not None else 1):
            candidate = (number + attempt) % len(self.samples)
            index = int(self.samples.indices[candidate])
            try:
                return self._augment(self.samples.source.read(index), epoch, candidate)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) not in FILE_ERRNOS:
                    raise  # for example out of memory, or too many open files
                unusable.append(self.samples.source.explain(index, error))
        return None

    def _augment(self, sample: tuple[Any, Any], epoch: int, number: int) -> tuple[Tensor, Any]:
        if self.augmentation is None:
            transform = build_evaluation_transform(self.config.dataset)
        else:
            transform = build_training_transform(self.config, self.augmentation, epoch)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("augmentation", self.seed, epoch, number))
            image, target = transform(*sample)
        return image, target


def collate(samples: Sequence[tuple[Tensor, Any]], task: str) -> Batch:
    """A batch in the layout of the task (study/data/batches.py).

    Images of different sizes are padded with 0, their masks with `IGNORED`.
    """
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    if task == "detection":
        return images, targets
    if not samples:
        return torch.empty(0, 3, 1, 1), torch.empty((0, 1, 1) if task == "segmentation" else 0, dtype=torch.long)
    if task == "classification":
        return torch.stack(images), torch.tensor(targets)
    shapes = {image.shape[1:] for image in images}
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    if len(shapes) > 1:
        height, width = (-(-side // STRIDE) * STRIDE for side in (height, width))
    margins = [[0, width - image.shape[2], 0, height - image.shape[1]] for image in images]
    return (
        torch.stack([pad(image, margin) for image, margin in zip(images, margins, strict=True)]),
        torch.stack([pad(mask, margin, value=IGNORED) for mask, margin in zip(targets, margins, strict=True)]).long(),
    )
