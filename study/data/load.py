"""Loads the data of a trial: finds the data set's files, and splits its images for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from study.config.datasets import DATASETS, compute_split_sizes
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seed
from study.config.wording import format_plural
from study.data import scenes
from study.data.in_memory import InMemoryData, LabeledImages, Splits, describe_images
from study.data.loaders import TrialData
from study.data.registry import import_in_memory_module
from study.data.streamed import check_streamed, load_streamed


def load_data(
    config: TrialConfig,
    seeds: Mapping[str, int],
    data_root: str | None = None,
    workers: int = 0,
    *,
    own_data: bool = False,
) -> TrialData:
    """The data of a trial. Raises `UserError` if files are missing or damaged.

    workers: processes that read streamed data; 0: the trial's process reads it itself.
    own_data: accepts files with other content than the published ones.
    """
    if DATASETS[config.dataset].streamed:
        return load_streamed(config, seeds, data_root, workers)
    return InMemoryData(load_splits(config, seeds["split"], data_root, own_data=own_data), config, seeds["data"])


def check_data(config: TrialConfig, data_root: str | None = None, *, own_data: bool = False) -> dict[str, str]:
    """Finds or downloads the files that a trial needs, before any trial starts. Returns `TrialData.fingerprint`.

    Raises `UserError` if files are missing or damaged.
    """
    dataset = DATASETS[config.dataset]
    if dataset.streamed:
        return check_streamed(config, data_root)
    return describe_images(
        config.dataset, *load_images(dataset.glyphs or config.dataset, data_root, own_data=own_data)
    )  # fmt: skip


def load_images(
    dataset: str, data_root: str | None = None, *, own_data: bool = False
) -> tuple[LabeledImages, LabeledImages | None]:
    """All published images: those for training and validation, and the test split if one is published.

    Raises `UserError` if files are missing, or are not what the catalog says.
    """
    pool, test = import_in_memory_module(dataset).load(dataset, data_root)
    facts, where = DATASETS[dataset], f"run.data_root={data_root}: {dataset}"
    for name, images, published in (("training", pool, facts.train), ("test", test, facts.test)):
        if (len(images) if images else None) != published:
            raise UserError(
                f"{where}: {format_plural(len(images or ()), f'{name} image')}, not the published {published}"
            )
        if images and not 0 <= images.labels.min() <= images.labels.max() < facts.classes:
            labels = f"{int(images.labels.min())} to {int(images.labels.max())}"
            raise UserError(f"{where}: labels of {name} images: {labels}; allowed: 0 to {facts.classes - 1}")
    unpublished = [*pool.unpublished, *(test.unpublished if test else ())]
    if unpublished and not own_data:
        raise UserError(
            f"{unpublished[0]}: its content is not the published one of {dataset}: replace the file, "
            "or set run.own_data=true if the data are your own"
        )
    return pool, test


def load_splits(config: TrialConfig, seed: int, data_root: str | None = None, *, own_data: bool = False) -> Splits:
    """The normalized splits of a data set that is held in memory; `seed` decides which image belongs to which split.

    A published test split is used as it is. Raises `UserError` if files are missing or damaged.
    """
    sizes = config.split_sizes
    if DATASETS[config.dataset].glyphs is not None:
        train, validation, test = _compose_scenes(config, sizes, seed, data_root, own_data)
    else:
        train, validation, test = _split_images(config.dataset, sizes, seed, data_root, own_data)
    mean = train.images.mean((0, 2, 3), keepdim=True)
    std = train.images.std((0, 2, 3), keepdim=True)
    train, validation, test = (replace(part, images=(part.images - mean) / std) for part in (train, validation, test))
    return Splits(train=train, validation=validation, test=test)


def _compose_scenes(
    config: TrialConfig, sizes: Sequence[int], seed: int, data_root: str | None, own_data: bool
) -> list[LabeledImages]:
    """Scenes for training, validation and test. No two splits share a glyph."""
    dataset = DATASETS[config.dataset].glyphs
    assert dataset is not None
    glyphs = _split_images(dataset, compute_split_sizes(dataset, config.validation_fraction), seed, data_root, own_data)
    splits = [
        scenes.compose_scenes(part, samples, derive_seed("scenes", seed, number))
        for number, (part, samples) in enumerate(zip(glyphs, sizes, strict=True))
    ]
    return [scenes.label_largest_object(split) for split in splits] if config.task == "classification" else splits


def _split_images(
    dataset: str, sizes: Sequence[int], seed: int, data_root: str | None, own_data: bool
) -> list[LabeledImages]:
    """Published images for training, validation and test, not normalized."""
    pool, test = load_images(dataset, data_root, own_data=own_data)
    n_train, n_validation, n_test = sizes
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    if test is None:
        test, order = pool.take(order[:n_test]), order[n_test:]
    return [pool.take(order[n_validation:][:n_train]), pool.take(order[:n_validation]), test]
