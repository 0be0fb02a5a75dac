"""Streamed data: files in their published formats give batches that depend only on (seed, epoch, index)."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seeds
from study.data import fingerprint
from study.data.batch_reader import MAX_TRIES
from study.data.batches import IGNORED
from study.data.load import check_data, load_data
from study.data.loaders import TrialData
from study.data.registry import import_streamed_module
from tests.conftest import Command
from tests.data.trees import (
    WRITERS,
    write_ade20k,
    write_cityscapes,
    write_coco,
    write_image,
    write_imagenet,
    write_mask,
)


def configure(dataset: str, **fields: Any) -> TrialConfig:
    """A trial with the data set's augmentation: two steps per epoch of two samples each, on eight images."""
    facts = DATASETS[dataset]
    given = {"chunks": 1, "batch_size": 2, "train_samples": 5, **fields}
    return TrialConfig(dataset=dataset, task=facts.tasks[0], augmentation=facts.augmentations[-1], **given)


def load(root: Path, config: TrialConfig, workers: int = 0) -> TrialData:
    return load_data(config, derive_seeds(0), str(root), workers)


def flatten(value: Any) -> list[Tensor]:
    """All tensors in nested batches, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in flatten(item)]


def equal(first: Iterable[Any], second: Iterable[Any]) -> bool:
    pairs = list(zip(flatten(list(first)), flatten(list(second)), strict=True))
    return bool(pairs) and all(torch.equal(one, other) for one, other in pairs)


def list_files_of_split(data: Any, split: str) -> list[str]:
    samples = data.splits[split]
    return [samples.source.name(int(index)) for index in samples.indices]


# ------------------------------------------------------------------------------------------ fingerprints


def edit_annotations(folder: Path) -> None:
    file = folder / "annotations/instances_val2017.json"
    file.write_text(file.read_text().replace('"category_id": 1,', '"category_id": 2,'))


CHANGES: dict[str, list[Callable[[Path], Any]]] = {
    "imagenet": [
        lambda folder: (folder / "train/n01440764/n01440764_0.JPEG").rename(folder / "train/n01443537/0.JPEG"),
        lambda folder: (folder / "val/n01440764/n01440764_0.JPEG").write_bytes(b""),
        lambda folder: write_image(folder / "train/n01440764/9.JPEG", 9),
    ],
    "ade20k": [lambda folder: write_mask(folder / "annotations/training/ADE_training_00000000.png", [1, 2, 3, 4])],
    "cityscapes": [
        lambda folder: write_mask(folder / "gtFine/val/aachen/aachen_000000_000000_gtFine_labelIds.png", [7]),
        lambda folder: write_image(folder / "leftImg8bit/val/aachen/aachen_000000_000000_leftImg8bit.png", 9),
    ],
    "coco": [lambda folder: write_image(folder / "val2017/000000000000.jpg", 9), edit_annotations],
}  # fmt: skip


@pytest.mark.parametrize("dataset", WRITERS)
def test_a_fingerprint_depends_on_the_files_and_not_on_their_folder(tmp_path: Path, dataset: str) -> None:
    config = configure(dataset, train_samples=2)
    roots = [tmp_path / str(number) for number in range(2 + len(CHANGES[dataset]))]
    for root, change in zip(roots, (None, None, *CHANGES[dataset]), strict=True):
        folder = WRITERS[dataset](root)
        (folder / "._litter.jpg").touch()
        if change:
            change(folder)
    found = [load(root, config).fingerprint[dataset] for root in roots]
    assert found[0] == found[1] == check_data(config, str(roots[0]))[dataset]
    assert len(set(found)) == len(found) - 1


def test_few_of_many_files_are_asked_for_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[Path] = []
    monkeypatch.setattr(fingerprint, "_find_size", lambda path: sizes.append(path) or 0)
    fingerprint.describe_files(tmp_path, np.arange(100_001).astype(str))
    assert 500 < len(sizes) <= 1000


# ------------------------------------------------------------------------------------------ order


@pytest.mark.parametrize("dataset", WRITERS)
def test_a_resumed_epoch_equals_an_uninterrupted_one_with_any_number_of_workers(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path)
    config = configure(dataset, color="jitter" if dataset == "imagenet" else "none")
    loaders = {
        workers: load(tmp_path, config, workers).build_training_loader(config.augmentation) for workers in (0, 2)
    }
    for loader in loaders.values():
        loader.set_epoch(1)
    whole = list(loaders[0])
    assert len(whole) == len(loaders[0]) == 2
    begun = list(islice(loaders[2], 1))
    resumed = load(tmp_path, config).build_training_loader(config.augmentation)
    resumed.load_state_dict(loaders[2].state_dict())
    assert equal(begun + list(resumed), whole)


def test_epochs_differ_in_order_and_augmentation(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    loader = load(tmp_path, configure("imagenet", batch_size=5)).build_training_loader("random_resized_crop")
    epochs = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    assert equal(epochs[0], epochs[2])
    assert not equal(epochs[0], epochs[1])


def test_an_epoch_with_a_given_number_of_steps_spans_several_passes(tmp_path: Path) -> None:
    write_coco(tmp_path)
    loader = load(tmp_path, configure("coco", epoch_steps=5)).build_training_loader("none")
    images = [image for batch, _ in loader for image in batch]
    assert len(images) == 10
    assert len({image.sum().item() for image in images}) == 5


@pytest.mark.parametrize("dataset", WRITERS)
def test_the_shards_of_a_batch_add_up_to_it(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path)
    config = configure(dataset, batch_size=4)
    data = load(tmp_path, config)
    (whole,), (first,), (second,) = (
        data.build_training_loader(config.augmentation, part) for part in ((0, 1), (0, 2), (1, 2))
    )
    for kind in range(2):
        assert equal(whole[kind], [*first[kind], *second[kind]])


@pytest.mark.parametrize("dataset", ["imagenet", "coco"])
def test_evaluation_shards_are_equally_long_and_contain_every_image_once(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path)
    data = load(tmp_path, configure(dataset))
    parts = [list(data.build_evaluation_loader("test", (rank, 2))) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    images = [image for part in parts for batch, _ in part for image in batch]
    assert sorted(image.sum().item() for image in images) == sorted(
        image.sum().item() for batch, _ in data.build_evaluation_loader("test") for image in batch
    )
    assert len(images) == 3


def test_reading_batches_does_not_change_the_global_generator(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    state = torch.get_rng_state()
    list(load(tmp_path, configure("imagenet")).build_training_loader("random_resized_crop"))
    assert torch.equal(torch.get_rng_state(), state)


def test_train_and_validation_are_cut_from_the_published_train_split_by_the_seed(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    config = configure("imagenet", validation_fraction=0.25)
    data, other = (load_data(config, derive_seeds(replicate), str(tmp_path)) for replicate in (0, 1))
    train, validation = list_files_of_split(data, "train"), list_files_of_split(data, "validation")
    assert (len(train), len(validation), len(list_files_of_split(data, "test"))) == (5, 2, 3)
    assert not set(train) & set(validation)
    assert list_files_of_split(other, "train") != train
    assert all(name.startswith("val/") for name in list_files_of_split(data, "test"))


# ------------------------------------------------------------------------------------------ formats


def test_imagenet_classes_are_numbered_by_the_sorted_folder_names(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    _, labels = next(iter(load(tmp_path, configure("imagenet")).build_evaluation_loader("test")))
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_labels_become_train_ids(tmp_path: Path, kind: str) -> None:
    write_cityscapes(tmp_path, kind=kind)
    _, mask = next(iter(load(tmp_path, configure("cityscapes")).build_evaluation_loader("test")))
    assert mask[0, 0].unique_consecutive().tolist() == [0, IGNORED, 18]


def test_ade20k_labels_move_down_by_one(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    masks = [mask for _, mask in load(tmp_path, configure("ade20k")).build_evaluation_loader("test")]
    assert [mask[0, 0].unique_consecutive().tolist() for mask in masks] == [[IGNORED, 0, 149, n] for n in range(3)]


def test_coco_objects_have_boxes_labels_and_masks_that_agree(tmp_path: Path) -> None:
    write_coco(tmp_path)
    _, (target,) = next(iter(load(tmp_path, configure("coco")).build_evaluation_loader("test")))
    assert target["boxes"].tolist() == [[4, 8, 20, 24], [30, 0, 40, 40], [0, 0, 56, 40]]  # clipped to the image
    assert target["labels"].tolist() == [1, 80, 2]
    assert target["iscrowd"].tolist() == [0, 0, 1]
    for (x1, y1, x2, y2), mask in zip(target["boxes"][:2].int().tolist(), target["masks"][:2], strict=True):
        inside = torch.zeros_like(mask)
        inside[y1:y2, x1:x2] = 1
        assert torch.equal(mask, inside)


def test_a_flip_mirrors_boxes_and_masks_too(tmp_path: Path) -> None:
    write_coco(tmp_path)
    loader = load(tmp_path, configure("coco", epoch_steps=8)).build_training_loader("flip")
    targets = [target for _, batch in loader for target in batch]
    lefts = {target["boxes"][0, 0].item() for target in targets}
    assert lefts == {4, 56 - 20}
    for target in targets:
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert target["masks"][0, y1:y2, x1:x2].all()


def test_an_image_without_objects_has_empty_targets(tmp_path: Path) -> None:
    write_coco(tmp_path, edit=lambda content: content["annotations"].clear())
    _, (target, _) = next(iter(load(tmp_path, configure("coco")).build_training_loader("flip")))
    assert [tuple(target[key].shape) for key in ("boxes", "labels", "masks")] == [(0, 4), (0,), (0, 40, 56)]


def test_evaluation_images_are_normalized_and_resized_as_catalogued(tmp_path: Path) -> None:
    shapes = {}
    for dataset, write in WRITERS.items():
        write(tmp_path)
        images, _ = next(iter(load(tmp_path, configure(dataset)).build_evaluation_loader("test")))
        shapes[dataset] = tuple(images[0].shape)
        assert images[0].dtype == torch.float32
        assert images[0].min() < 0 < images[0].max() < 3
    assert shapes == {
        "imagenet": (3, 224, 224),
        "ade20k": (3, 450, 630),
        "cityscapes": (3, 40, 56),
        "coco": (3, 40, 56),
    }


def test_images_of_different_sizes_are_padded_with_ignored_pixels(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    config = configure("ade20k", batch_size=5)
    images, masks = next(iter(load(tmp_path, config).build_training_loader("none")))
    assert images.shape[2:] == masks.shape[1:]
    assert all(side % 8 == 0 for side in masks.shape[1:])
    padding = (images == 0).all(1)
    assert padding.any()
    assert (masks[padding] == IGNORED).all()


def test_the_last_epochs_have_milder_crops(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    config = configure("imagenet", epochs=3, mild_epochs=1, batch_size=5)
    data = load(tmp_path, config)
    mild, plain = data.build_training_loader("random_resized_crop"), data.build_training_loader("none")
    for loader in (mild, plain):
        loader.set_epoch(2)
    for image, same in zip(next(iter(mild))[0], next(iter(plain))[0], strict=True):
        assert torch.equal(image, same) or torch.equal(image.flip(-1), same)


# ------------------------------------------------------------------------------------------ bad input


def spoil_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_is_replaced_in_training_and_left_out_in_evaluation(
    tmp_path: Path, workers: int
) -> None:
    folder = write_imagenet(tmp_path)
    config = configure("imagenet", epoch_steps=3)
    data = load(tmp_path, config, workers)
    bad = list_files_of_split(data, "train")[1]
    spoil_image(folder / bad)
    assert [len(labels) for _, labels in data.build_training_loader("random_resized_crop")] == [2, 2, 2]
    (line,) = data.set_aside
    assert line.startswith(f"{bad}: ")
    assert sum(len(labels) for _, labels in data.build_evaluation_loader("train")) == 4


def test_the_replacement_of_a_sample_does_not_depend_on_workers_or_resume(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    config = configure("coco", epoch_steps=5)
    data, other = load(tmp_path, config), load(tmp_path, config, 2)
    (folder / list_files_of_split(data, "train")[0]).unlink()
    loader, resumed = data.build_training_loader("flip"), other.build_training_loader("flip")
    whole = list(loader)
    begun = list(islice(loader, 3))
    resumed.load_state_dict(loader.state_dict())
    assert equal(begun + list(resumed), whole)
    assert other.set_aside == data.set_aside != []


def test_the_reason_is_in_plain_words_without_paths_of_the_machine(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path)
    (folder / "val/n01440764/n01440764_0.JPEG").write_text("no image")
    (folder / "val/n01440764/n01440764_2.JPEG").unlink()
    data = load(tmp_path, configure("imagenet"))
    (folder / "val/n01443537/n01443537_1.JPEG").unlink()
    assert [len(labels) for _, labels in data.build_evaluation_loader("test")] == [0]
    assert data.set_aside == [
        "val/n01440764/n01440764_0.JPEG: is not an image",
        "val/n01443537/n01443537_1.JPEG: is missing, or is no regular file",
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda mask: mask.point(lambda label: 200), "unknown labels: 200"),
        (lambda mask: mask.convert("RGB"), "RGB"),
        (lambda mask: mask.resize((9, 9), Image.Resampling.NEAREST), "another size"),
    ],
)
def test_an_image_with_an_unusable_mask_is_set_aside(
    tmp_path: Path, spoil: Callable[[Image.Image], Image.Image], why: str
) -> None:
    folder = write_ade20k(tmp_path)
    data = load(tmp_path, configure("ade20k"))
    image = Path(list_files_of_split(data, "test")[0])
    path = folder / "annotations/validation" / f"{image.stem}.png"
    with Image.open(path) as mask:
        spoiled = spoil(mask)
    spoiled.save(path)
    masks = [mask for _, mask in data.build_evaluation_loader("test")]
    assert [len(mask) for mask in masks] == [0, 1, 1]
    (line,) = data.set_aside
    assert line.startswith(str(image))
    assert why in line


def test_label_tables_cover_the_labels_of_the_data_set() -> None:
    modules = {name: import_streamed_module(name) for name in ("cityscapes", "ade20k")}
    tables = {name: module.build_label_table() for name, module in modules.items()}
    counts = {name: len(set(table.tolist()) - {-1, IGNORED}) for name, table in tables.items()}
    assert counts == {"cityscapes": 19, "ade20k": 150}
    assert {name: int((table >= 0).sum()) for name, table in tables.items()} == {"cityscapes": 34, "ade20k": 151}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_fails_with_one_line_if_no_sample_is_usable(tmp_path: Path, workers: int) -> None:
    folder = write_imagenet(tmp_path)
    data = load(tmp_path, configure("imagenet"), workers)
    for path in (folder / "train").rglob("*.JPEG"):
        spoil_image(path)
    with pytest.raises(UserError, match=f"no usable sample in {MAX_TRIES}") as caught:
        list(data.build_training_loader("random_resized_crop"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", WRITERS)
def test_the_error_for_missing_data_names_folder_layout_and_download_page(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=f"^run.data_root={tmp_path}: {dataset}: no .* expected .* from http") as caught:
        check_data(TrialConfig(dataset=dataset), str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dataset", WRITERS)
def test_incomplete_data_are_refused_unless_train_samples_is_set(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path)
    check_data(TrialConfig(dataset=dataset, train_samples=1), str(tmp_path))
    with pytest.raises(UserError, match=r"8 training images .* not the published .* train_samples"):
        check_data(TrialConfig(dataset=dataset), str(tmp_path))


def empty_files(folder: Path) -> None:
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix != ".json":
            path.write_bytes(b"")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("dataset", "edit", "message"),
    [
        *((dataset, lambda folder: None, "train_samples=7: allowed: 1 to 6") for dataset in WRITERS),
        *((dataset, empty_files, r"no usable sample in the first 8; .*: is not an image$") for dataset in WRITERS),
        ("imagenet", lambda folder: empty_class(folder / "train/n01443537"), "n01443537: no training images of this"),
    ],
)
def test_data_that_no_trial_could_use_end_the_run_before_training(
    tmp_path: Path, command: Command, dataset: str, edit: Callable[[Path], None], message: str
) -> None:
    edit(WRITERS[dataset](tmp_path / "data"))
    settings = {
        "dataset": dataset, "task": DATASETS[dataset].tasks[0], "augmentation": DATASETS[dataset].augmentations[-1],
        "train_samples": 7 if "train_samples" in message else 4, "depth": "[18]", "width": 1.0, "norm": "bn",
        "batch_size": "[2]", "chunks": 1, "data_root": tmp_path / "data", "tracking.mode": "disabled",
    }  # fmt: skip
    flags = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    done = command("--study", "depth_vs_batch", "--scale", "smoke", *flags, "--out", str(tmp_path / "runs"))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert re.search(message, done.err.strip())
    assert not (tmp_path / "runs").exists()


def empty_class(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_images_with_a_missing_file_are_set_aside(tmp_path: Path) -> None:
    (write_ade20k(tmp_path) / "annotations/training/ADE_training_00000003.png").unlink()
    (write_coco(tmp_path) / "train2017/000000000003.jpg").unlink()
    for dataset, image in (
        ("ade20k", "images/training/ADE_training_00000003.jpg"),
        ("coco", "train2017/000000000003.jpg"),
    ):
        lines = load(tmp_path, configure(dataset)).set_aside
        assert [line.partition(":")[0] for line in lines] == [image]


def test_a_flat_folder_of_imagenet_validation_images_is_explained(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, test=0)
    (folder / "val").mkdir()
    with pytest.raises(UserError, match="lie flat"):
        check_data(TrialConfig(dataset="imagenet"), str(tmp_path))


def test_imagenet_classes_that_differ_between_splits_are_refused(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path)
    (folder / "val/n01443537").rename(folder / "val/n99999999")
    with pytest.raises(UserError, match="n01443537 is in one of them only"):
        check_data(TrialConfig(dataset="imagenet"), str(tmp_path))


# ------------------------------------------------------------------------------------------ processes


def test_a_signal_to_all_processes_of_a_job_does_not_end_workers(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    batches = iter(
        load(tmp_path, configure("imagenet", epoch_steps=12), 2).build_training_loader("random_resized_crop")
    )
    next(batches)
    for name in ("TERM", "USR1", "INT"):
        for worker in multiprocessing.active_children():
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert len(list(batches)) == 11


@pytest.mark.slow
def test_a_trial_on_imagenet_through_the_command_line(tmp_path: Path, command: Command) -> None:
    folder = write_imagenet(tmp_path / "data")
    spoil_image(folder / "val/n01440764/n01440764_0.JPEG")
    settings = {
        "dataset": "imagenet", "augmentation": "random_resized_crop", "train_samples": 4, "depth": 18, "width": 1.0,
        "norm": "bn", "data_root": tmp_path / "data", "batch_size": 2, "chunks": 1, "epochs": 1, "replicates": 1,
        "tracking.mode": "disabled",
    }  # fmt: skip
    flags = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    out = str(tmp_path / "runs")
    done = command("run", "--study", "depth_vs_batch", "--scale", "smoke", *flags, "--out", out)
    assert done.code == 0, done.err
    (result,) = (tmp_path / "runs").rglob("result.json")
    record = json.loads(result.read_text())
    assert (record["status"], record["steps"]) == ("done", 2)
    assert any("n01440764_0.JPEG" in note for note in record["notes"])
