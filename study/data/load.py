"""A data set by name -> what a trial trains and is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from study.config.datasets import DATASETS, compute_split_sizes
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seed
from study.data import cifar, digits, fashion_mnist, scenes
from study.data.batches import Data
from study.data.files import data_folder
from study.data.memory import Images, MemoryData, Splits
from study.data.stream import check_stream, load_stream

GLYPHS = {"scenes": "digits", "scenes_fashion": "fashion_mnist"}
"""What the objects of scenes are."""


def load_data(config: TrialConfig, seeds: Mapping[str, int], data_root: str | None = None, workers: int = 0) -> Data:
    """The data of a trial. Raises `UserError` where files are missing.

    workers: processes that read streamed data; 0: the trial's own does.
    """
    if DATASETS[config.dataset].streamed:
        return load_stream(config, seeds, data_root, workers)
    return MemoryData(load_splits(config, seeds["split"], data_root), config, seeds["data"])


def check_data(dataset: str, data_root: str | None = None, *, subset: bool = False) -> None:
    """Finds the files, or downloads them, once and before the trials. Raises `UserError` where they are missing.

    subset: trials say how many images they take: of streamed data, not all that is published need be there.
    """
    if DATASETS[dataset].streamed:
        check_stream(dataset, data_root, subset=subset)
    else:
        load_images(GLYPHS.get(dataset, dataset), data_root)


def load_splits(config: TrialConfig, seed: int, data_root: str | None = None) -> Splits:
    """The splits of `config.dataset`, normalized; which image falls into which is drawn from `seed`.

    A published test split is kept as it is. Raises `UserError` where the files are missing.
    """
    sizes = config.split_sizes
    if config.dataset in GLYPHS:
        train, validation, test = _compose_scenes(config, sizes, seed, data_root)
    else:
        train, validation, test = _split_images(config.dataset, sizes, seed, data_root)
    mean = train.images.mean((0, 2, 3), keepdim=True)
    std = train.images.std((0, 2, 3), keepdim=True)
    train, validation, test = (replace(part, images=(part.images - mean) / std) for part in (train, validation, test))
    return Splits(train=train, validation=validation, test=test)


def _compose_scenes(config: TrialConfig, sizes: Sequence[int], seed: int, data_root: str | None) -> list[Images]:
    """Scenes for training, validation and test, each of glyphs that no other has."""
    dataset = GLYPHS[config.dataset]
    glyphs = _split_images(dataset, compute_split_sizes(dataset, config.validation_fraction), seed, data_root)
    parts = [
        scenes.compose(part, samples, derive_seed("scenes", seed, number))
        for number, (part, samples) in enumerate(zip(glyphs, sizes, strict=True))
    ]
    return [scenes.classify(part) for part in parts] if config.task == "classification" else parts


def _split_images(dataset: str, sizes: Sequence[int], seed: int, data_root: str | None) -> list[Images]:
    """Published images for training, validation and test, as they are."""
    pool, test = load_images(dataset, data_root)
    facts = DATASETS[dataset]
    if (len(pool), test and len(test)) != (facts.train, facts.test):
        raise UserError(f"run.data_root={data_root}: {dataset}: {len(pool)} training images, not {facts.train}")
    n_train, n_validation, n_test = sizes
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    if test is None:
        test, order = pool.take(order[:n_test]), order[n_test:]
    return [pool.take(order[n_validation:][:n_train]), pool.take(order[:n_validation]), test]


def load_images(dataset: str, data_root: str | None = None) -> tuple[Images, Images | None]:
    """All published images: those to draw training and validation from, and the test split where there is one."""
    if dataset == "digits":
        return digits.load(), None
    root, download = data_folder(data_root), data_root is None
    if dataset == "fashion_mnist":
        return (
            fashion_mnist.load(root, "train", download=download),
            fashion_mnist.load(root, "test", download=download),
        )
    if dataset in ("cifar10", "cifar100"):
        classes = DATASETS[dataset].classes
        return (
            cifar.load(root, "train", classes=classes, download=download),
            cifar.load(root, "test", classes=classes, download=download),
        )
    raise AssertionError(f"{dataset} is not held in memory")
