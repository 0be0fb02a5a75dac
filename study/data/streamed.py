"""Data sets that are too large for memory: worker processes read and augment the batches during training.

A batch depends only on (seed, epoch, index), so neither the number of workers nor a resume changes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.wording import format_plural
from study.data.batch_reader import MAX_TRIES, BatchReader, BatchRequest, SampleSubset
from study.data.batches import Batch
from study.data.data_root import resolve_data_root
from study.data.fingerprint import build_fingerprint
from study.data.image_files import SampleSource
from study.data.loaders import Shard, SplitName, TrainingLoader, split_evaluation
from study.data.registry import import_streamed_module

EVALUATION_BATCH_SIZES = {"classification": 128, "segmentation": 1, "detection": 1}  # 1 if images differ in size
START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # workers of a forkserver would outlive a killed trial


def check_streamed(config: TrialConfig, data_root: str | None) -> dict[str, str]:
    """Raises `UserError` if files are missing, or if none of the first samples of a split can be used.

    Returns `TrialData.fingerprint`.
    """
    splits = _open_splits(config, data_root)
    for source in splits:
        samples, tried = source.select_targets(config, training=True), min(MAX_TRIES, len(source))
        problems = list(takewhile(bool, (_find_problem(samples, index) for index in range(tried))))
        if len(problems) == tried:
            raise UserError(f"{source.folder}: no usable sample in the first {tried}; the last one: {problems[-1]}")
    return _describe_splits(config, splits)


def load_streamed(config: TrialConfig, seeds: Mapping[str, int], data_root: str | None, workers: int) -> StreamedData:
    """The data of a trial. The published validation split is the test split; validation images are cut from train.

    All published images must exist, unless `train_samples` says how many of the existing training images to use.
    Raises `UserError` if files are missing.
    """
    pool, test = _open_splits(config, data_root)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seeds["split"]))
    train, validation = config.split_sizes[0], _count_validation(config, pool)
    splits: dict[SplitName, SampleSubset] = {
        "train": SampleSubset(source=pool, indices=order[validation:][:train]),
        "validation": SampleSubset(source=pool, indices=order[:validation]),
        "test": SampleSubset(source=test, indices=torch.arange(len(test))),
    }
    return StreamedData(
        splits=splits, config=config, seed=seeds["data"], workers=workers,
        set_aside=[*pool.set_aside, *test.set_aside], fingerprint=_describe_splits(config, (pool, test)),
        notes=[*_describe_subset(config.dataset, pool, test), *pool.notes, *test.notes],
    )  # fmt: skip


def _open_splits(config: TrialConfig, data_root: str | None) -> tuple[SampleSource, SampleSource]:
    """The published training and validation splits. Raises `UserError` if they have too few files for the trial."""
    dataset, subset = config.dataset, config.train_samples is not None
    module, facts = import_streamed_module(dataset), DATASETS[dataset]
    folder = module.find_folder(resolve_data_root(data_root))
    try:
        pool, test = module.open_split(folder, "train"), module.open_split(folder, "test")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    for name, source, published in (("training", pool, facts.train), ("validation", test, facts.test)):
        if len(source) != published and not (subset and len(source)):
            example = "".join(f", for example {line}" for line in source.set_aside[:1])
            example += "".join(f"; {line}" for line in source.notes)
            raise UserError(
                f"{folder}: {dataset}: {format_plural(len(source), f'{name} image')} with their labels, not the "
                f"published {published}{example}; copy all of it from {module.DOWNLOAD_PAGE}, or set train_samples "
                "to use what exists"
            )
    train, validation = config.split_sizes[0], _count_validation(config, pool)
    if validation + train > len(pool):
        raise UserError(
            f"run.data_root={data_root}: {dataset}: of its {format_plural(len(pool), 'training image')}, "
            f"{validation} for validation; train_samples={train}: allowed: 1 to {len(pool) - validation}"
        )
    return pool, test


def _describe_splits(config: TrialConfig, splits: Iterable[SampleSource]) -> dict[str, str]:
    """The data set and its fingerprint."""
    return {config.dataset: build_fingerprint(part for source in splits for part in source.describe())}


def _count_validation(config: TrialConfig, pool: SampleSource) -> int:
    """The number of training images that are held out for validation."""
    return max(1, round(config.validation_fraction * len(pool)))


def _find_problem(samples: SampleSource, index: int) -> str:
    """Why a sample cannot be used; empty if it can."""
    try:
        samples.read(index)
    except (OSError, ValueError) as error:
        return samples.explain(index, error)
    return ""


def _describe_subset(dataset: str, pool: SampleSource, test: SampleSource) -> list[str]:
    """A line if images are missing, since the images that a trial sees then depend on more than its configuration."""
    facts = DATASETS[dataset]
    if (len(pool), len(test)) == (facts.train, facts.test):
        return []
    return [
        f"{dataset}: only {len(pool)} of the {facts.train} training images and {len(test)} of the "
        f"{facts.test} validation images published"
    ]


@dataclass(frozen=True, kw_only=True)
class StreamedData:
    """The `TrialData` of a data set that is streamed from disk.

    workers: processes per loader that is being read; 0: batches are read in this process.
    """

    splits: Mapping[SplitName, SampleSubset]
    config: TrialConfig
    seed: int
    workers: int
    set_aside: list[str]
    notes: Sequence[str]
    fingerprint: Mapping[str, str]
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable

    def to(self, device: torch.device) -> StreamedData:
        return replace(self, device=device)

    def build_training_loader(self, augmentation: str, shard: Shard = (0, 1)) -> StreamedTrainingLoader:
        return StreamedTrainingLoader(self, augmentation, shard)

    def build_evaluation_loader(self, split: SplitName, shard: Shard = (0, 1)) -> StreamedEvaluationLoader:
        return StreamedEvaluationLoader(self, split, shard)

    def read_batches(self, reader: BatchReader, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """The requested batches in order, on the device. Raises `UserError` if `MAX_TRIES` samples in a row are bad."""
        loader = DataLoader(
            reader, sampler=requests, batch_size=None, collate_fn=_return_unchanged,
            pin_memory=self.device.type == "cuda", num_workers=self.workers, worker_init_fn=_ignore_job_signals,
            multiprocessing_context=START_METHOD if self.workers else None,
            generator=torch.Generator(),  # otherwise the loader would draw from the global generator
        )  # fmt: skip
        for batch, unusable in loader:
            for line in unusable:
                if line not in self.set_aside:
                    print(f"set aside: {line}", flush=True)
                    self.set_aside.append(line)
            if batch is None:
                raise UserError(f"{self.config.dataset}: no usable sample in {MAX_TRIES}; the last one: {unusable[-1]}")
            yield _move_to(self.device, batch)


class StreamedTrainingLoader(TrainingLoader):
    """A `TrainingLoader` of samples in files. Its state also contains the samples that have been set aside."""

    def __init__(self, data: StreamedData, augmentation: str, shard: Shard) -> None:
        config, samples = data.config, data.splits["train"].select_targets(data.config, training=True)
        super().__init__(len(samples), config.gradient_batch, steps=config.epoch_steps, seed=data.seed, shard=shard)
        self.data = data
        self.reader = BatchReader(samples=samples, config=config, seed=data.seed, augmentation=augmentation)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "set_aside": list(self.data.set_aside)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.data.set_aside[:] = state_dict["set_aside"]

    def draw_batches(self, first: int) -> Iterator[Batch]:
        return self.data.read_batches(self.reader, self._build_requests(first))

    def _build_requests(self, first: int) -> Iterator[BatchRequest]:
        order = self.draw_order()
        for index in range(first, len(self)):
            samples = order[index * self.batch_size :][: self.batch_size].tolist()
            yield BatchRequest(epoch=self.epoch, samples=samples, shard=self.shard)


class StreamedEvaluationLoader:
    """Yields every usable sample once, in order and without augmentation."""

    def __init__(self, data: StreamedData, split: SplitName, shard: Shard) -> None:
        self.data, samples = data, data.splits[split].select_targets(data.config, training=False)
        self.batches = split_evaluation(len(samples), EVALUATION_BATCH_SIZES[data.config.task], shard)
        self.reader = BatchReader(samples=samples, config=data.config, seed=data.seed, augmentation=None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        requests = (BatchRequest(epoch=0, samples=samples, shard=(0, 1)) for samples in self.batches)
        return self.data.read_batches(self.reader, requests)


def _move_to(device: torch.device, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _move_to(device, value) for key, value in batch.items()}
    return type(batch)(_move_to(device, value) for value in batch)


def _return_unchanged(batch: Any) -> Any:
    return batch


def _ignore_job_signals(worker: int) -> None:
    """Makes a worker ignore signals that a cluster sends to all processes of a job; only its parent may end it."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "darwin":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    assert sys.platform != "darwin"
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
