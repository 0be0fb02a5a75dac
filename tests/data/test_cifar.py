"""CIFAR is read by torchvision, and only if its files are the published ones."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.data.load import load_images

COUNT = 4


@pytest.fixture(params=[("cifar10", CIFAR10, "labels"), ("cifar100", CIFAR100, "fine_labels")], ids=lambda p: p[0])
def published(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A small data set in CIFAR's format, taken for the published one: its name, and the folder of its files."""
    dataset, kind, labels = request.param
    batch: dict[str, Any] = {"data": np.full((COUNT, 3072), 51, np.uint8), labels: list(range(COUNT))}
    folder = tmp_path / kind.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()]

    monkeypatch.setattr(kind, "train_list", [write("data", batch)])
    monkeypatch.setattr(kind, "test_list", [write("test", batch)])
    name, md5 = write("meta", {kind.meta["key"]: [str(label) for label in range(COUNT)]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": name, "md5": md5})
    monkeypatch.setitem(DATASETS, dataset, replace(DATASETS[dataset], train=COUNT, test=COUNT))
    return dataset, folder


def test_published_files_are_read(published: tuple[str, Path]) -> None:
    dataset, folder = published
    train, test = load_images(dataset, str(folder.parent))
    assert test is not None
    assert train.images.shape == test.images.shape == (COUNT, 3, 32, 32)
    assert train.images.eq(0.2).all()
    assert train.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["data", "test", "meta"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "{path}: damaged: its MD5"),
        (lambda path: path.write_bytes(pickle.dumps({})), "{path}: damaged: its MD5"),
        (lambda path: path.unlink(), "no .*{path.name} in"),
    ],
)
def test_a_damaged_or_missing_file_is_named(
    published: tuple[str, Path], name: str, spoil: Callable[[Path], object], why: str
) -> None:
    dataset, folder = published
    spoil(folder / name)
    with pytest.raises(UserError, match=why.format(path=folder / name)) as caught:
        load_images(dataset, str(folder.parent), own_data=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_with_the_folders_that_were_searched(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=f"^run.data_root={tmp_path}: {dataset}: no ") as caught:
        load_images(dataset, str(tmp_path))
    assert "\n" not in str(caught.value)
