"""Data sets too large for memory: batches are read and augmented as training goes, by worker processes.

What a sample becomes depends on (seed, epoch, index) alone, so neither the number of workers nor a resume changes it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seed
from study.data import ade20k, cityscapes, coco, imagenet
from study.data.batches import IGNORED, Batch, SplitName, epoch_order
from study.data.files import data_folder
from study.data.sample_source import SampleSource
from study.data.transforms import evaluation_transform, training_transform

MODULES: dict[str, ModuleType] = {"imagenet": imagenet, "coco": coco, "cityscapes": cityscapes, "ade20k": ade20k}
EVALUATION_BATCH = {"classification": 128, "segmentation": 1, "detection": 1}  # unpadded, where images differ in size
TRIES = 100  # samples in a row that may be unusable before it is taken for the disk's fault
WORKERS = "fork" if sys.platform == "linux" else "spawn"  # not forkserver's: they would outlive a trial that is killed
CPU = torch.device("cpu")
STRIDE = 8  # padded images are a multiple of it
UNREADABLE = (None, errno.ENOENT, errno.EACCES, errno.EISDIR, errno.EIO)  # a file's fault; None: Pillow's own


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A split: which samples of a published part, in order."""

    source: SampleSource
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)


def check_stream(dataset: str, data_root: str | None, *, subset: bool) -> None:
    """Raises `UserError` where files are missing."""
    _open_parts(dataset, data_root, subset=subset)


def load_stream(config: TrialConfig, seeds: Mapping[str, int], data_root: str | None, workers: int) -> StreamedData:
    """A trial's `Data`: the published validation part is the test split, validation is cut from train by its seed.

    All published images must be there, unless `train_samples` says how many training images are to be taken of what is
    there. Raises `UserError` where files are missing.
    """
    pool, test = _open_parts(config.dataset, data_root, subset=config.train_samples is not None)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seeds["split"]))
    validation = max(1, round(config.validation_fraction * len(pool)))
    train = config.split_sizes[0]
    if validation + train > len(pool):
        raise UserError(
            f"run.data_root={data_root}: {config.dataset}: of {len(pool)} training images here {validation} are for "
            f"validation; train_samples={train}: allowed: 1 to {len(pool) - validation}"
        )
    splits: dict[SplitName, Samples] = {
        "train": Samples(source=pool, indices=order[validation:][:train]),
        "validation": Samples(source=pool, indices=order[:validation]),
        "test": Samples(source=test, indices=torch.arange(len(test))),
    }
    return StreamedData(
        splits=splits, config=config, seed=seeds["data"], workers=workers,
        set_aside=[*_count(config.dataset, pool, test), *pool.set_aside, *test.set_aside],
    )  # fmt: skip


def _open_parts(dataset: str, data_root: str | None, *, subset: bool) -> tuple[SampleSource, SampleSource]:
    folder, facts = MODULES[dataset].find(data_folder(data_root)), DATASETS[dataset]
    pool, test = (MODULES[dataset].open_part(folder, part) for part in ("train", "test"))
    for name, source, published in (("training", pool, facts.train), ("validation", test, facts.test)):
        if len(source) != published and not (subset and len(source)):
            example = f", for example {source.set_aside[0]}" if source.set_aside else ""
            raise UserError(
                f"{folder}: {dataset}: {len(source)} {name} images with their labels, not the published {published}"
                f"{example}; copy all of it from {MODULES[dataset].PAGE}, or set train_samples to use what is there"
            )
    return pool, test


def _count(dataset: str, pool: SampleSource, test: SampleSource) -> list[str]:
    """A line where not all is there: which images a trial has seen then depends on more than its configuration."""
    facts = DATASETS[dataset]
    if (len(pool), len(test)) == (facts.train, facts.test):
        return []
    return [
        f"{dataset}: all but {len(pool)} of {facts.train} training and {len(test)} of {facts.test} validation images "
        "published"
    ]


@dataclass(frozen=True, kw_only=True)
class StreamedData:
    """A trial's `Data` from files. Workers are processes for each loader that is being read; 0: none but this one."""

    splits: Mapping[SplitName, Samples]
    config: TrialConfig
    seed: int
    workers: int
    set_aside: list[str]
    device: torch.device = CPU

    def to(self, device: torch.device) -> StreamedData:
        return replace(self, device=device)

    def training(self, augmentation: str, part: tuple[int, int] = (0, 1)) -> StreamedTraining:
        return StreamedTraining(self, augmentation, part)

    def evaluation(self, split: SplitName, part: tuple[int, int] = (0, 1)) -> StreamedEvaluation:
        return StreamedEvaluation(self, split, part)

    def read(self, reader: Reader, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches in the order of requests, on the device. Raises `UserError` where no sample can be used."""
        loader = DataLoader(
            reader, sampler=requests, batch_size=None, collate_fn=_as_it_is, pin_memory=self.device.type == "cuda",
            num_workers=self.workers, worker_init_fn=_follow_parent_alone,
            multiprocessing_context=WORKERS if self.workers else None,
            generator=torch.Generator(),  # else it would draw from the global one
        )  # fmt: skip
        for batch, unusable in loader:
            for line in unusable:
                if line not in self.set_aside:
                    print(f"set aside: {line}", flush=True)
                    self.set_aside.append(line)
            if batch is None:
                raise UserError(f"{self.config.dataset}: no usable sample in {TRIES}, the last one: {unusable[-1]}")
            yield _move(batch, self.device)


class StreamedTraining:
    """Batches of one epoch, in an order and with an augmentation that depend on (seed, epoch, index) alone.

    The incomplete last batch is dropped. Goes on from a `state_dict` with the batch that follows, as `TrainingLoader`.
    """

    def __init__(self, data: StreamedData, augmentation: str, part: tuple[int, int]) -> None:
        self.data, self.part, self.epoch, self.first, self.drawn = data, part, 0, 0, 0
        self.samples = data.splits["train"]
        self.reader = Reader(samples=self.samples, config=data.config, seed=data.seed, augmentation=augmentation)

    def __len__(self) -> int:
        return self.data.config.epoch_steps or len(self.samples) // self.data.config.gradient_batch

    def set_epoch(self, epoch: int) -> None:
        """Must be called before the epoch's first batch is drawn."""
        self.epoch, self.first = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.drawn, "set_aside": list(self.data.set_aside)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.first = state_dict["epoch"], state_dict["batch"]
        self.data.set_aside[:] = state_dict["set_aside"]

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is drawn before the first batch, so that set_epoch comes in time after a resume too.
        first, self.first = self.first, 0
        for number, batch in enumerate(self.data.read(self.reader, self._requests(first)), first + 1):
            self.drawn = number
            yield batch

    def _requests(self, first: int) -> Iterator[Request]:
        size, steps = self.data.config.gradient_batch, self.data.config.epoch_steps
        order = epoch_order(len(self.samples), self.epoch, self.data.seed, steps and steps * size)
        for index in range(first, len(self)):
            yield Request(epoch=self.epoch, samples=order[index * size :][:size].tolist(), part=self.part)


class StreamedEvaluation:
    """Every usable sample once, in order, without augmentation."""

    def __init__(self, data: StreamedData, split: SplitName, part: tuple[int, int]) -> None:
        self.data, self.part, self.batch_size = data, part, EVALUATION_BATCH[data.config.task]
        self.samples = data.splits[split]
        self.reader = Reader(samples=self.samples, config=data.config, seed=data.seed, augmentation=None)

    def __len__(self) -> int:
        return -(-len(self.samples) // (self.batch_size * self.part[1]))

    def __iter__(self) -> Iterator[Batch]:
        return self.data.read(self.reader, self._requests())

    def _requests(self) -> Iterator[Request]:
        part, parts = self.part
        for index in range(len(self)):
            start = (index * parts + part) * self.batch_size
            stop = min(start + self.batch_size, len(self.samples))
            yield Request(epoch=0, samples=range(start, stop), part=(0, 1))


# ------------------------------------------------------------------------------------------ in a worker


@dataclass(frozen=True, kw_only=True)
class Request:
    """One batch: which samples of the split, and which of how many equal parts of them."""

    epoch: int
    samples: Sequence[int]
    part: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Reader(Dataset[tuple[Batch | None, list[str]]]):
    """Makes batches, in a worker or in the trial's process: what comes out depends on the request alone.

    In training a sample that cannot be used is replaced by the one after it in the split; in evaluation, where
    `augmentation` is None, it is left out. With a batch come the lines that say which, and why; a batch for which too
    many have been tried is None.
    """

    samples: Samples
    config: TrialConfig
    seed: int
    augmentation: str | None

    def __getitem__(self, request: Request) -> tuple[Batch | None, list[str]]:
        wanted, unusable = request.samples, list[str]()
        size, task = len(wanted) // request.part[1], self.config.task
        own = slice(request.part[0] * size, (request.part[0] + 1) * size)
        padded = task == "segmentation" and self.augmentation in ("none", "scale_flip")
        if not padded:  # then a device has its part of what all of the batch is padded to, and must see all of it
            wanted, own = wanted[own], slice(None)
        found = [self._find(request.epoch, index, unusable) for index in wanted]
        if self.augmentation is not None and None in found:
            return None, unusable
        images, targets = collate([sample for sample in found if sample is not None], task)
        return (images[own], targets[own]), unusable

    def _find(self, epoch: int, index: int, unusable: list[str]) -> tuple[Tensor, Any] | None:
        """The sample, or the next one that can be used."""
        for attempt in range(TRIES if self.augmentation is not None else 1):
            number = (index + attempt) % len(self.samples)
            place = int(self.samples.indices[number])
            try:
                return self._augment(self.samples.source.read(place), epoch, number)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) not in UNREADABLE:
                    raise  # memory or open files are short
                unusable.append(f"{self.samples.source.name(place)}: {str(error).splitlines()[0]}")
        return None

    def _augment(self, sample: tuple[Any, Any], epoch: int, index: int) -> tuple[Tensor, Any]:
        if self.augmentation is None:
            transform = evaluation_transform(self.config.dataset)
        else:
            transform = training_transform(self.config, self.augmentation, epoch)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed("augmentation", self.seed, epoch, index))
            image, target = transform(*sample)
        return image, target


def collate(samples: Sequence[tuple[Tensor, Any]], task: str) -> Batch:
    """A batch as `batches` has it. Images of several sizes are padded, with classes that do not count."""
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
    room = [[0, width - image.shape[2], 0, height - image.shape[1]] for image in images]
    return (
        torch.stack([pad(image, margins) for image, margins in zip(images, room, strict=True)]),
        torch.stack([pad(mask, margins, value=IGNORED) for mask, margins in zip(targets, room, strict=True)]).long(),
    )


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _move(value, device) for key, value in batch.items()}
    return type(batch)(_move(value, device) for value in batch)


def _as_it_is(answer: Any) -> Any:
    return answer


def _follow_parent_alone(worker: int) -> None:
    """A cluster signals every process of a job; whether a worker ends is the trial's decision, that started it."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "darwin":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    assert sys.platform != "darwin"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
