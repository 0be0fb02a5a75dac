"""Loaders and splits of data held in memory: random numbers depend only on (seed, epoch, index)."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.data import cifar
from study.data.in_memory import InMemoryEvaluationLoader, InMemoryTrainingLoader, LabeledImages
from study.data.load import load_images, load_splits


def numbered(n: int = 20, size: int = 8) -> LabeledImages:
    """Images that can be told apart: all pixels of image i are i + 1."""
    images = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 1, size, size).contiguous()
    return LabeledImages(images=images, labels=torch.arange(n))


def epoch(loader: InMemoryTrainingLoader, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    loader.set_epoch(number)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    loader = InMemoryTrainingLoader(numbered(), 4, augmentation="none", seed=0)
    images, labels = epoch(loader, 0)
    assert sorted(labels.tolist()) == list(range(20))
    assert torch.equal(images[:, 0, 0, 0], labels + 1.0)
    assert not torch.equal(epoch(loader, 1)[1], labels)
    assert torch.equal(epoch(loader, 0)[1], labels)


def test_an_incomplete_last_batch_is_dropped() -> None:
    loader = InMemoryTrainingLoader(numbered(10), 4, augmentation="none", seed=0)
    assert len(loader) == 2
    assert [len(labels) for _, labels in loader] == [4, 4]


def test_the_shards_of_a_batch_are_its_consecutive_parts() -> None:
    data = LabeledImages(images=torch.randn(20, 1, 8, 8), labels=torch.arange(20))
    loaders = [
        InMemoryTrainingLoader(data, 8, augmentation="shift_flip", seed=0, shard=(r, n))
        for n in (1, 2)
        for r in range(n)
    ]
    for whole, first, second in zip(*loaders, strict=True):
        for kind in range(2):
            assert torch.equal(whole[kind], torch.cat([first[kind], second[kind]]))


def test_a_loader_resumes_at_its_saved_batch_and_the_next_epoch_is_complete() -> None:
    def labels(loader: InMemoryTrainingLoader, count: int | None = None) -> list[list[int]]:
        return [batch.tolist() for _, batch in islice(loader, count)]

    loader, resumed = (InMemoryTrainingLoader(numbered(), 4, augmentation="none", seed=0) for _ in range(2))
    loader.set_epoch(3)
    whole = labels(loader)
    drawn = labels(loader, 2)
    resumed.load_state_dict(loader.state_dict())
    assert drawn + labels(resumed) == whole
    assert resumed.state_dict() == {"epoch": 3, "batch": 5}
    for each in (loader, resumed):
        each.set_epoch(4)
    assert labels(resumed) == labels(loader)


@pytest.mark.parametrize("n", [1, 7, 12])
def test_evaluation_shards_are_equally_long_and_contain_every_image_once(n: int) -> None:
    parts = [list(InMemoryEvaluationLoader(numbered(n), 2, shard=(rank, 3))) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(torch.cat([labels for part in parts for _, labels in part]).tolist()) == list(range(n))


@pytest.mark.parametrize("augmentation", ["shift", "shift_flip"])
def test_augmentation_of_an_image_does_not_depend_on_its_batch(augmentation: str) -> None:
    data = LabeledImages(images=torch.randn(24, 3, 16, 16), labels=torch.arange(24))
    results = []
    for batch in (2, 8, 24):
        images, labels = epoch(InMemoryTrainingLoader(data, batch, augmentation=augmentation, seed=3), 5)
        results.append(images[labels.argsort()])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_shift_moves_by_at_most_an_eighth_and_repeats_the_edge() -> None:
    image = torch.full((1, 1, 16, 16), -0.8)
    image[0, 0, 8, 8] = 1
    data = LabeledImages(images=image.repeat(500, 1, 1, 1), labels=torch.arange(500))
    images, _ = epoch(InMemoryTrainingLoader(data, 500, augmentation="shift", seed=0), 0)
    places = images.flatten(1).argmax(1)
    rows, columns = places // 16 - 8, places % 16 - 8
    assert images.flatten(1).sort().values[:, :-1].eq(-0.8).all()  # only the mark and the background
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_flip_mirrors_half_of_the_images() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., :4] = 1
    data = LabeledImages(images=image.repeat(400, 1, 1, 1), labels=torch.arange(400))
    images, _ = epoch(InMemoryTrainingLoader(data, 400, augmentation="shift_flip", seed=0), 0)
    mirrored = (images[..., 8:].sum((1, 2, 3)) > 0).float().mean()
    assert 0.4 < mirrored < 0.6


def test_evaluation_sees_every_image_once_in_order() -> None:
    labels = torch.cat([labels for _, labels in InMemoryEvaluationLoader(numbered(10), 4)])
    assert labels.tolist() == list(range(10))


def test_digits_are_split_by_the_seed_without_overlap() -> None:
    config = TrialConfig()
    splits, again, other = (load_splits(config, seed) for seed in (0, 0, 1))
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [1150, 288, 359]
    assert torch.equal(splits.train.images, again.train.images)
    assert not torch.equal(splits.train.labels, other.train.labels)
    rows = {tuple(image.flatten().tolist()) for image in load_images("digits")[0].images}
    everything = torch.cat([splits.train.images, splits.validation.images, splits.test.images])
    assert len({tuple(image.flatten().tolist()) for image in everything}) == len(rows)  # some scans are identical


def test_normalization_uses_only_the_training_split() -> None:
    splits = load_splits(TrialConfig(), 0)
    assert splits.train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert splits.train.images.std().item() == pytest.approx(1, abs=1e-4)
    assert abs(splits.test.images.mean().item()) > 1e-5


def write_idx(path: Path, array: np.ndarray, *, compress: bool) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize(("folder", "compress"), [("", True), ("FashionMNIST/raw", False), ("fashion-mnist", True)])
def test_fashion_mnist_is_read_from_every_usual_layout(tmp_path: Path, folder: str, compress: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    suffix = ".gz" if compress else ""
    for part in ("train", "t10k"):
        write_idx(tmp_path / folder / f"{part}-images-idx3-ubyte{suffix}", pixels, compress=compress)
        write_idx(tmp_path / folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(5), compress=compress)
    train, test = load_images("fashion_mnist", str(tmp_path))
    assert test is not None
    torch.testing.assert_close(train.images[:, 0], torch.from_numpy(pixels / 255).float())
    assert test.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("dataset", "published"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_read_by_torchvisions_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, published: str
) -> None:
    class Published:
        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            assert (root, download) == (tmp_path, False)
            self.data = np.full((4 if train else 2, 32, 32, 3), 51, np.uint8)
            self.targets = list(range(len(self.data)))

    monkeypatch.setattr(cifar, published, Published)
    train, test = load_images(dataset, str(tmp_path))
    assert test is not None
    assert (train.images.shape, test.images.shape) == ((4, 3, 32, 32), (2, 3, 32, 32))
    assert train.images.eq(0.2).all()
    assert train.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_with_the_folders_that_were_searched(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError) as caught:
        load_images(dataset, str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert dataset in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_data_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_images("cifar10", str(tmp_path / "nowhere"))
