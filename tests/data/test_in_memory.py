"""Loaders and splits of data held in memory: random numbers depend only on (seed, epoch, index)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from study.config.errors import UserError
from study.config.schema import TrialConfig
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


def test_a_missing_data_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_images("cifar10", str(tmp_path / "nowhere"))
