"""Scenes: how they are composed, and that the labels, boxes and masks of all tasks agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seeds
from study.data import digits, scenes
from study.data.batches import Batch
from study.data.in_memory import InMemoryEvaluationLoader, InMemoryTrainingLoader, LabeledImages
from study.data.load import check_data, load_data, load_splits

MANY = scenes.BLOCK + 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, as in trials: waiting threads on busy cores would take longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def some() -> LabeledImages:
    return scenes.compose_scenes(digits.read_images(), MANY, 0)


def load_whole_batch(data: LabeledImages, task: str) -> Batch:
    """All samples in one evaluation batch."""
    return next(iter(InMemoryEvaluationLoader(data, len(data), task=task)))  # type: ignore[arg-type]


def test_a_scene_depends_only_on_its_index_and_the_seed(some: LabeledImages) -> None:
    for samples in (1, scenes.BLOCK + 1):
        fewer = scenes.compose_scenes(digits.read_images(), samples, 0)
        for name in ("images", "labels", "masks"):
            assert torch.equal(getattr(fewer, name), getattr(some, name)[:samples])
    assert not torch.equal(scenes.compose_scenes(digits.read_images(), 5, 1).images, some.images[:5])


def test_scenes_are_the_same_on_every_machine(some: LabeledImages) -> None:
    assert some.labels[:4].tolist() == [[3, 10, 0], [6, 0, 0], [8, 0, 0], [9, 1, 0]]


def test_splits_do_not_share_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compose(glyphs: LabeledImages, samples: int, seed: int) -> LabeledImages:
        made.append((glyphs, samples, seed))
        return composed(glyphs, 2, seed)

    composed = scenes.compose_scenes
    monkeypatch.setattr(scenes, "compose_scenes", compose)
    load_splits(TrialConfig(dataset="scenes", train_samples=7), 0)
    rows = [row for glyphs, _, _ in made for row in glyphs.images.flatten(1).tolist()]
    assert Counter(map(tuple, rows)) == Counter(map(tuple, digits.read_images().images.flatten(1).tolist()))
    assert [samples for _, samples, _ in made] == [7, 500, 500]
    assert len({seed for _, _, seed in made}) == 3


def test_a_scene_has_the_labels_of_its_glyphs() -> None:
    everything = digits.read_images()
    sevens = everything.take(everything.labels == 7)
    data = scenes.compose_scenes(sevens, 20, 0)
    assert set(data.labels.unique().tolist()) == {0, 8}
    assert scenes.label_largest_object(data).labels.eq(7).all()


def test_boxes_masks_and_labels_of_all_tasks_agree(some: LabeledImages) -> None:
    images, targets = load_whole_batch(some, "detection")
    pixels, classes = load_whole_batch(some, "segmentation")
    labels = load_whole_batch(scenes.label_largest_object(some), "classification")[1]
    assert torch.equal(torch.stack(images), pixels)
    for target, semantic, label in zip(targets, classes, labels, strict=True):
        masks = target["masks"]
        assert masks.sum(0).max() == 1  # the visible parts of objects do not overlap
        assert torch.equal((masks * target["labels"][:, None, None]).sum(0), semantic)
        assert torch.equal(target["boxes"], torch.stack([compute_tight_box(mask) for mask in masks]))
        areas = masks.sum((1, 2))
        assert areas.min() >= scenes.MIN_AREA
        assert target["labels"][areas.argmax()] == label + 1


def compute_tight_box(mask: Tensor) -> Tensor:
    rows, columns = mask.nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_scenes_vary_in_contrast_and_number_of_objects(some: LabeledImages) -> None:
    contrasts = some.images.std((1, 2, 3))
    assert contrasts.max() > 3 * contrasts.min()
    assert {int(count) for count in (some.labels > 0).sum(1)} == set(range(1, scenes.OBJECTS + 1))


@pytest.mark.parametrize("augmentation", ["none", "shift", "shift_flip"])
def test_masks_are_augmented_like_their_images(some: LabeledImages, augmentation: str) -> None:
    assert some.masks is not None
    numbers = torch.arange(1, scenes.OBJECTS + 1).expand(MANY, -1)  # every object has its own class
    data = LabeledImages(images=some.masks[:, None].float(), labels=numbers, masks=some.masks)

    def epoch(task: str) -> Batch:
        return next(iter(InMemoryTrainingLoader(data, MANY, augmentation=augmentation, seed=3, task=task)))  # type: ignore[arg-type]

    images, classes = epoch("segmentation")
    assert torch.equal(images[:, 0].long(), classes)
    assert (classes.sum((1, 2)) > 0).all()
    for image, target in zip(*epoch("detection"), strict=True):
        masks = target["masks"]
        assert torch.equal((masks * target["labels"][:, None, None]).sum(0), image[0].long())
        assert torch.equal(target["boxes"], torch.stack([compute_tight_box(mask) for mask in masks]))


def test_objects_shifted_out_of_the_image_are_left_out() -> None:
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[0] = 1
    data = LabeledImages(
        images=torch.zeros(100, 3, 16, 16), labels=torch.tensor([[4, 0]] * 100), masks=mask.repeat(100, 1, 1)
    )
    images, targets = next(iter(InMemoryTrainingLoader(data, 100, augmentation="shift", seed=0, task="detection")))
    assert len(images) == len(targets) == 100
    assert {len(target["labels"]) for target in targets} == {0, 1}
    for target in targets:
        objects = len(target["labels"])
        assert target["boxes"].shape == (objects, 4)
        assert target["masks"].shape == (objects, 16, 16)


def test_the_shards_of_a_detection_batch_are_its_consecutive_parts(some: LabeledImages) -> None:
    loaders = [
        InMemoryTrainingLoader(some, 8, augmentation="shift_flip", seed=0, shard=shard, task="detection")
        for shard in ((0, 1), (0, 2), (1, 2))
    ]
    for whole, first, second in zip(*loaders, strict=True):
        both = [[*one, *other] for one, other in zip(first, second, strict=True)]
        torch.testing.assert_close(list(whole), both, rtol=0, atol=0)


@pytest.mark.parametrize(("task", "targets"), [("segmentation", (0, 32, 32)), ("detection", None)])
def test_the_last_batch_of_an_evaluation_shard_may_be_empty(
    some: LabeledImages, task: str, targets: tuple[int, ...] | None
) -> None:
    (batch,) = InMemoryEvaluationLoader(some.take(slice(0, 1)), 4, shard=(1, 2), task=task)  # type: ignore[arg-type]
    assert len(batch[0]) == 0
    assert batch[1].shape == targets if targets else batch[1] == []


def test_one_training_scene_is_enough_for_a_trial() -> None:
    config = TrialConfig(dataset="scenes", train_samples=1, task="detection", batch_size=1, chunks=1)
    data = load_data(config, derive_seeds(0))
    ((images, targets),) = data.build_training_loader("shift")
    assert images[0].shape == (3, 32, 32)
    assert images[0].isfinite().all()
    assert 1 <= len(targets[0]["labels"]) <= scenes.OBJECTS
    assert sum(len(images) for images, _ in data.build_evaluation_loader("validation")) == 500


def test_check_data_looks_for_the_glyphs_of_scenes(tmp_path: Path) -> None:
    check_data(TrialConfig(dataset="scenes"), str(tmp_path))
    with pytest.raises(UserError, match="fashion_mnist"):
        check_data(TrialConfig(dataset="scenes_fashion"), str(tmp_path))
