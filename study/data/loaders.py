"""The loaders of a trial, for training and for evaluation: what data held in memory and streamed data have in common.

A shard (rank, ranks) says which of several devices a loader serves: in training the device takes the rank-th of `ranks`
equal consecutive parts of every batch, in evaluation the rank-th of every `ranks` batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from study.config.seeds import derive_seed
from study.data.batches import Batch

SplitName = Literal["train", "validation", "test"]
Shard = tuple[int, int]


class TrialData(Protocol):
    """The data that a trial is trained and evaluated on.

    set_aside: one line for each file or label that could not be used, with the reason.
    notes: other lines about the files, for the record.
    fingerprint: the data set whose files were read, and what identifies their content (study/data/fingerprint.py).
    """

    @property
    def set_aside(self) -> Sequence[str]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> Mapping[str, str]: ...

    def to(self, device: torch.device) -> TrialData: ...

    def build_training_loader(self, augmentation: str, shard: Shard = (0, 1)) -> TrainingLoader: ...

    def build_evaluation_loader(self, split: SplitName, shard: Shard = (0, 1)) -> EvaluationLoader: ...


class EvaluationLoader(Protocol):
    """Yields every sample once, in order and without augmentation."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingLoader(ABC):
    """Yields the batches of one epoch. Their order and augmentation depend only on (seed, epoch, index).

    The incomplete last batch is dropped. Lightning saves `state_dict` in a checkpoint; a loader that has loaded it
    continues with the batch that follows.

    steps: number of batches of an epoch; None: one pass through the samples.
    """

    def __init__(self, sample_count: int, batch_size: int, *, steps: int | None, seed: int, shard: Shard) -> None:
        self.sample_count, self.batch_size, self.steps = sample_count, batch_size, steps
        self.seed, self.shard = seed, shard
        self.epoch, self.first_batch, self.drawn_batches = 0, 0, 0

    @abstractmethod
    def draw_batches(self, first: int) -> Iterator[Batch]:
        """The batches of the current epoch, from number `first` on."""

    def __len__(self) -> int:
        return self.steps or self.sample_count // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # A generator draws nothing before its first batch, so `set_epoch` may also be called between `iter` and `next`.
        first, self.first_batch = self.first_batch, 0
        for number, batch in enumerate(self.draw_batches(first), first + 1):
            self.drawn_batches = number
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Must be called before the first batch of the epoch is drawn."""
        self.epoch, self.first_batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.drawn_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.first_batch = state_dict["epoch"], state_dict["batch"]

    def draw_order(self) -> Tensor:
        """The indices of the samples of the current epoch, in order.

        An epoch is one shuffled pass. If `steps` is given, it takes the next steps * batch_size indices of an endless
        sequence of shuffled passes instead.
        """
        if not self.steps:
            return self._shuffle(self.epoch)
        count = self.steps * self.batch_size
        first = self.epoch * count
        passes = range(first // self.sample_count, (first + count - 1) // self.sample_count + 1)
        indices = torch.cat([self._shuffle(number) for number in passes])
        return indices[first - passes[0] * self.sample_count :][:count]

    def _shuffle(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, number))
        return torch.randperm(self.sample_count, generator=generator)


class WholeEpochs:
    """A training loader whose batches of an epoch are one batch for Lightning: an iterator over those that are left."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader
        self.set_epoch, self.state_dict, self.load_state_dict = (
            loader.set_epoch, loader.state_dict, loader.load_state_dict,
        )  # fmt: skip

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        yield iter(self.loader)


def split_evaluation(sample_count: int, batch_size: int, shard: Shard) -> list[range]:
    """The indices of the samples in each evaluation batch of a shard.

    All shards have equally many batches, so the last ones may be empty.
    """
    rank, ranks = shard
    batches = -(-sample_count // (batch_size * ranks))
    starts = [(batch * ranks + rank) * batch_size for batch in range(batches)]
    return [range(start, max(start, min(start + batch_size, sample_count))) for start in starts]
