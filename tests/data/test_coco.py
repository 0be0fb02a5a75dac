"""COCO's annotations: optional keys, crowds, and damage that is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.data.load import check_data
from tests.data.test_streamed import configure, load
from tests.data.trees import write_coco


def remove(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            for key in keys:
                del annotation[key]

    return edit


# ------------------------------------------------------------------------------------------ optional keys


def test_iscrowd_and_id_are_optional(tmp_path: Path) -> None:
    write_coco(tmp_path, edit=remove("iscrowd", "id"))
    targets = [target for _, (target,) in load(tmp_path, configure("coco")).build_evaluation_loader("train")]
    assert {tuple(target["iscrowd"].tolist()) for target in targets} == {(0, 0, 0)}
    assert {tuple(target["masks"].shape) for target in targets} == {(3, 40, 56)}


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("empty", ["missing", [], None])
def test_only_heads_with_masks_need_segmentations(tmp_path: Path, head: Any, empty: Any) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][:3]:
            annotation["segmentation"] = empty
            if empty == "missing":
                del annotation["segmentation"]

    write_coco(tmp_path, edit=edit)
    data = load(tmp_path, configure("coco", head=head, validation_fraction=0.01, train_samples=7))
    splits = ("train", "validation")
    targets = [target for split in splits for _, batch in data.build_evaluation_loader(split) for target in batch]
    needs_masks = head == "mask_rcnn"
    assert [len(targets), len(data.set_aside)] == ([7, 1] if needs_masks else [8, 0])
    assert {"masks" in target for target in targets} == {needs_masks}
    for line in data.set_aside:
        assert line == "train2017/000000000000.jpg: an object has no segmentation, which head=mask_rcnn needs"


def test_boxes_of_whole_numbers_are_floats(tmp_path: Path) -> None:
    write_coco(tmp_path, edit=lambda content: content.update(annotations=content["annotations"][::3]))
    _, (target, _) = next(iter(load(tmp_path, configure("coco")).build_training_loader("none")))
    assert target["boxes"].dtype == torch.float32


def test_crowds_are_targets_of_evaluation_only(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = load(tmp_path, configure("coco"))
    trained = [target for _, batch in data.build_training_loader("none") for target in batch]
    evaluated = [target for _, batch in data.build_evaluation_loader("train") for target in batch]
    assert {tuple(target["iscrowd"].tolist()) for target in trained} == {(0, 0)}
    assert {tuple(target["labels"].tolist()) for target in trained} == {(1, 80)}
    assert {tuple(target["iscrowd"].tolist()) for target in evaluated} == {(0, 0, 1)}


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.bad_input
def test_objects_with_an_empty_box_or_unknown_category_are_set_aside(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [4, 8, 0, 16]
        content["annotations"][1]["category_id"] = 12

    write_coco(tmp_path, edit=edit)
    data = load(tmp_path, configure("coco"))
    lines = data.set_aside
    assert ["no area" in lines[0], "unknown category 12" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.bad_input
@pytest.mark.parametrize("segmentation", [
    [], {"counts": [3], "size": [40, 56]}, {"size": [40, 56]}, "polygon", None, [[1, 1, 2]], [[1, 1, 9, 9]],
    [[1e300, 1, 10, 1, 10, 10]], [[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]],
])  # fmt: skip
def test_a_coco_image_with_an_unreadable_mask_is_set_aside(tmp_path: Path, segmentation: Any) -> None:
    folder = write_coco(tmp_path)
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    data = load(tmp_path, configure("coco"))
    assert sum(len(images) for images, _ in data.build_evaluation_loader("test")) == 2
    assert [line.partition(":")[0] for line in data.set_aside] == ["val2017/000000000000.jpg"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (lambda content: content["annotations"][4].pop("bbox"), "annotations[4].bbox: Field required"),
        (lambda content: content["annotations"][4].pop("image_id"), "annotations[4].image_id: Field required"),
        (lambda content: content["annotations"][4].update(bbox=[1, 2, 3]), "annotations[4].bbox[3]: Field required"),
        (lambda content: content["annotations"][4].update(bbox=[1, 2, 3, float("nan")]), "annotations[4].bbox[3]: "),
        (lambda content: content["annotations"][4].update(bbox="x"), "annotations[4].bbox: "),
        (lambda content: content["annotations"][4].update(iscrowd="perhaps"), "annotations[4].iscrowd: "),
        (lambda content: content["annotations"][4].update(category_id=[1]), "annotations[4].category_id: "),
        (lambda content: content["annotations"][4].update(image_id=99), "annotations[4].image_id: no image has the id"),
        (lambda content: content["annotations"].insert(4, None), "annotations[4]: "),
        (lambda content: content["images"][2].pop("file_name"), "images[2].file_name: Field required"),
        (lambda content: content["images"][2].update(height=0), "images[2].height: "),
        (lambda content: content["images"][2].update(id=3), "two of the images have the same id"),
        (lambda content: content["categories"][7].clear(), "categories[7].id: Field required"),
        (lambda content: content["categories"].append({"id": 1}), "two of the categories have the same id"),
        (lambda content: content.pop("annotations"), "annotations: Field required"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], None], where: str) -> None:
    path = write_coco(tmp_path, edit=edit) / "annotations/instances_train2017.json"
    with pytest.raises(UserError) as caught:
        check_data(TrialConfig(dataset="coco", train_samples=1), str(tmp_path))
    assert str(caught.value).startswith(f"{path}: damaged: {where}")
    assert "\n" not in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"images": [',
        "[]",
        '{"images": []}',
        '{"images": [], "annotations": [], "categories": []}',
        "[" * 100_000,
        '{"images": "\\ud800"}',
        "\0",
    ],
)
def test_a_damaged_json_file_of_coco_is_named(tmp_path: Path, text: str) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as caught:
        check_data(TrialConfig(dataset="coco", train_samples=1), str(tmp_path))
    assert "\n" not in str(caught.value)
