"""COCO 2017: boxes and masks of the objects in an image, from two JSON files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors

from study.config.errors import UserError
from study.data.files import find_tree
from study.data.sample_source import Names, Part, list_files, read_image

PAGE = "https://cocodataset.org/#download (train2017.zip, val2017.zip, annotations_trainval2017.zip)"
FOLDERS = {"train": "train2017", "test": "val2017"}
CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """Images (paths below `folder`) and their objects.

    objects: of each image, as JSON: size, objects. Python's own would be copied into every worker by counting
        references to them.
    labels: category id -> 1..80, in the order of ids.
    """

    folder: Path
    images: Names
    objects: Sequence[bytes]
    labels: Mapping[int, int]
    set_aside: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def read(self, index: int) -> tuple[tv_tensors.Image, dict[str, Tensor]]:
        image = read_image(self.folder / self.images[index])
        (height, width), objects = json.loads(self.objects[index])
        if image.shape[1:] != (height, width):
            raise ValueError(f"its size is {tuple(image.shape[1:])}, and that of its objects {(height, width)}")
        masks = [_read_mask(one["segmentation"], height, width) for one in objects]
        return image, {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([_corners(one["bbox"], height, width) for one in objects]).reshape(-1, 4),
                format="XYXY", canvas_size=(height, width),
            ),
            "labels": torch.tensor([self.labels[one["category_id"]] for one in objects], dtype=torch.long),
            "masks": tv_tensors.Mask(torch.from_numpy(np.array(masks, np.uint8)).reshape(-1, height, width)),
        }  # fmt: skip


def find(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    needed = [*FOLDERS.values(), *(f"annotations/instances_{place}.json" for place in FOLDERS.values())]
    return find_tree("coco", root, ("coco", "coco2017", ""), needed, PAGE)


def open_part(folder: Path, part: Part) -> Annotated:
    """A published part. Crowds are left out, and so are boxes of no area, which are named. Raises `UserError`."""
    place = FOLDERS[part]
    file = folder / f"annotations/instances_{place}.json"
    try:
        content = json.loads(file.read_bytes())
        images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
        labels = {number: label for label, number in enumerate(sorted(one["id"] for one in categories), 1)}
        there = set(list_files(folder, place, ".jpg"))
        paths = {one["id"]: f"{place}/{one['file_name']}" for one in images}
        set_aside = [f"{path}: no such file" for path in paths.values() if path not in there]
        sizes = {one["id"]: (one["height"], one["width"]) for one in images}
        objects = defaultdict(list)
        for one in annotations:
            number = one["image_id"]
            left, top, right, bottom = _corners(one["bbox"], *sizes[number])
            if one["iscrowd"]:
                continue
            if one["category_id"] not in labels:
                set_aside.append(f"{paths[number]}: object {one['id']} left out: unknown category {one['category_id']}")
            elif not (left < right and top < bottom):
                set_aside.append(f"{paths[number]}: object {one['id']} left out: its box has no area")
            else:
                objects[number].append({key: one[key] for key in ("bbox", "category_id", "segmentation")})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged: {type(error).__name__}: {error}") from None
    if len(labels) != CLASSES:
        raise UserError(f"{file}: {len(labels)} categories; expected COCO's {CLASSES}")
    numbers = [number for number in sorted(paths) if paths[number] in there]
    return Annotated(
        folder=folder, images=np.array([paths[number] for number in numbers], str), labels=labels,
        objects=[json.dumps([sizes[number], objects[number]]).encode() for number in numbers], set_aside=set_aside,
    )  # fmt: skip


def _corners(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """x, y, width, height -> x1, y1, x2, y2 inside the image."""
    left, top, across, down = box
    return max(0.0, left), max(0.0, top), min(float(width), left + across), min(float(height), top + down)


def _read_mask(segmentation: Any, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width) of 0 and 1, from polygons or a run-length encoding. Raises `ValueError`."""
    try:
        mask: np.ndarray[Any, np.dtype[np.uint8]] = coco_mask.decode(coco_mask.segmToRle(segmentation, width, height))
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"a mask that cannot be read: {str(error).splitlines()[0]}") from None
    if mask.shape != (height, width):
        raise ValueError(f"a mask of {mask.shape}, not of the image's size {(height, width)}")
    return mask
