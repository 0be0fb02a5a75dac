"""Small data sets live whole in the device's memory; batches are cut and augmented there, many images at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from study.config import TrialConfig, derive_seed
from study.data.batches import SplitName, epoch_order

EVALUATION_BATCH = 512
SHIFT = 1 / 8  # of the image's width: 4 pixels at 32x32, 1 at 8x8


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images (N, C, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        return Images(images=self.images[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> Images:
        return Images(images=self.images.to(device), labels=self.labels.to(device))


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
            steps=self.config.epoch_steps,
        )  # fmt: skip

    def evaluation(self, split: SplitName, part: tuple[int, int] = (0, 1)) -> EvaluationLoader:
        return EvaluationLoader(getattr(self.splits, split), part=part)


class TrainingLoader:
    """Batches of one epoch, in an order and with an augmentation that depend on (seed, epoch, index) alone.

    The draws of an image do not depend on the batch it falls into, so cells of different batch size see the same
    images, and a resumed run the same as an uninterrupted one. The incomplete last batch is dropped. Lightning asks for
    `state_dict` at a checkpoint, and a loader that was given it goes on with the batch that follows.

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
    ) -> None:
        self.data, self.batch_size, self.seed, self.epoch = data, batch_size, seed, 0
        self.part, self.steps, self.first, self.drawn = part, steps, 0, 0
        self.flips = augmentation == "shift_flip"
        size = data.images.shape[-1]
        self.reach = 0 if augmentation == "none" else max(1, round(SHIFT * size))
        # A view of every shifted window of every padded image: (N, C, 2 reach + 1, 2 reach + 1, H, W).
        # Edges are repeated: a border of any one grey would be seen in training and never in evaluation.
        padded = pad(data.images, [self.reach] * 4, mode="replicate")
        self.windows = padded.unfold(2, size, 1).unfold(3, size, 1)

    def __len__(self) -> int:
        return self.steps or len(self.data) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Must be called before the epoch's first batch is drawn."""
        self.epoch, self.first = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.first = state_dict["epoch"], state_dict["batch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
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
            images = self.windows[batch, :, down[batch], right[batch]]
            if self.flips:
                images = torch.where(flip[batch, None, None, None], images.flip(-1), images)
            yield images, self.data.labels[batch]


class EvaluationLoader:
    """Every image once, in order, as it is.

    part: (r, R) takes the r-th of every R batches; the last one may be empty, so that all parts are of one length.
    """

    def __init__(self, data: Images, batch_size: int = EVALUATION_BATCH, part: tuple[int, int] = (0, 1)) -> None:
        self.data, self.batch_size, self.part = data, batch_size, part

    def __len__(self) -> int:
        return -(-len(self.data) // (self.batch_size * self.part[1]))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        part, parts = self.part
        for index in range(len(self)):
            start = (index * parts + part) * self.batch_size
            batch = slice(start, start + self.batch_size)
            yield self.data.images[batch], self.data.labels[batch]
