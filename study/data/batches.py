"""What a batch is, for every task, and which samples an epoch sees.

A batch is (images, targets). Of N samples:
    classification  images (N, C, H, W), targets: labels (N,)
    segmentation    images (N, C, H, W), targets: classes of pixels (N, H, W), `IGNORED` where they do not count
    detection       a list of images (C, H, W) of any size, a list of dicts: boxes (M, 4) as x1, y1, x2, y2 in pixels,
                    labels (M,) from 1, masks (M, H, W) of 0 and 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from study.config.seeds import derive_seed

IGNORED = 255
Batch = tuple[Any, Any]
SplitName = Literal["train", "validation", "test"]


class Batches(Protocol):
    """Batches in turn, as many as its length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingBatches(Batches, Protocol):
    """Batches of one epoch, that depend on (seed, epoch, index) alone, and go on from a `state_dict`."""

    def set_epoch(self, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Data(Protocol):
    """What a trial is trained and evaluated on.

    set_aside: what had to be left out, a line each: the file, and why.
    part: (r, R) is the r-th of R equal consecutive parts of every batch in training, the r-th of every R batches in
        evaluation, where the last one may be empty.
    """

    @property
    def set_aside(self) -> Sequence[str]: ...

    def to(self, device: torch.device) -> Data: ...

    def training(self, augmentation: str, part: tuple[int, int] = (0, 1)) -> TrainingBatches: ...

    def evaluation(self, split: SplitName, part: tuple[int, int] = (0, 1)) -> Batches: ...


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Equal consecutive parts of a batch."""
    images, targets = batch
    size = len(images) // parts
    assert size * parts == len(images), f"{len(images)} samples cannot be cut into {parts} equal parts"
    return [(images[start : start + size], targets[start : start + size]) for start in range(0, len(images), size)]


def epoch_order(samples: int, epoch: int, seed: int, count: int | None = None) -> Tensor:
    """Which of `samples` an epoch sees, in order: all of them once, or the next `count` of an endless row of passes.

    Depends on (seed, epoch) alone, or with a `count` on the position in that row.
    """
    if count is None:
        return _pass(samples, epoch, seed)
    first = epoch * count
    passes = range(first // samples, (first + count - 1) // samples + 1)
    row = torch.cat([_pass(samples, number, seed) for number in passes])
    return row[first - passes[0] * samples :][:count]


def _pass(samples: int, number: int, seed: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed("order", seed, number)))
