"""COCO 2017: the boxes and masks of the objects in each image, from one JSON file per split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask
from pydantic import FailFast, FiniteFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor
from torchvision import tv_tensors

from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.wording import format_plural
from study.data.data_root import find_dataset_folder
from study.data.image_files import PublishedSplit, SampleSource, describe_others, list_files

DOWNLOAD_PAGE = "https://cocodataset.org/#download (train2017.zip, val2017.zip, annotations_trainval2017.zip)"
SPLIT_FOLDERS = {"train": "train2017", "test": "val2017"}
CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class ImagesWithObjects(SampleSource):
    """Images and the objects in them.

    objects: for each image, JSON of [[height, width], objects]. Bytes, because reading Python objects changes their
        reference counts, which copies them into every worker.
    labels: category id -> 1..80, in the order of ids.
    masks: whether targets contain the masks of objects.
    crowds: whether targets contain crowds, regions with many objects, in which evaluation ignores detections.
    """

    objects: Sequence[bytes]
    labels: Mapping[int, int]
    masks: bool = True
    crowds: bool = True

    def describe(self) -> Iterator[bytes]:
        yield from super().describe()
        yield json.dumps([*self.labels.items()]).encode()
        yield from self.objects

    def select_targets(self, config: TrialConfig, *, training: bool) -> ImagesWithObjects:
        return replace(self, masks=config.task_head == "mask_rcnn", crowds=not training)

    def read(self, index: int) -> tuple[tv_tensors.Image, dict[str, Tensor]]:
        image = self.read_image(index)
        (height, width), objects = json.loads(self.objects[index])
        if image.shape[1:] != (height, width):
            raise ValueError(f"its size is {tuple(image.shape[1:])}, but its annotations are for {(height, width)}")
        objects = [each for each in objects if self.crowds or not each["iscrowd"]]
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([_convert_box(each["bbox"], height, width) for each in objects]).reshape(-1, 4),
                format="XYXY", canvas_size=(height, width),
            ),
            "labels": torch.tensor([self.labels[each["category_id"]] for each in objects], dtype=torch.long),
            "iscrowd": torch.tensor([each["iscrowd"] for each in objects], dtype=torch.long),
        }  # fmt: skip
        if self.masks:
            masks = [_read_mask(each["segmentation"], height, width) for each in objects]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(np.array(masks, np.uint8)).reshape(-1, height, width))
        return image, target


def find_folder(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    names = SPLIT_FOLDERS.values()
    required = [*names, *(f"annotations/instances_{name}.json" for name in names)]
    return find_dataset_folder("coco", root, ("coco", "coco2017", ""), required, DOWNLOAD_PAGE)


def open_split(folder: Path, split: PublishedSplit) -> ImagesWithObjects:
    """A published split. Raises `UserError` if its JSON file is damaged.

    Objects of an unknown category or with an empty box are left out and set aside by name.
    """
    subfolder = SPLIT_FOLDERS[split]
    file = folder / f"annotations/instances_{subfolder}.json"
    content = _read_annotations(file)
    labels = {number: label for label, number in enumerate(sorted({each.id for each in content.categories}), 1)}
    if len(labels) < len(content.categories):
        raise UserError(f"{file}: damaged: two of the categories have the same id")
    if len(labels) != CLASSES:
        raise UserError(f"{file}: {format_plural(len(labels), 'category', 'categories')}; expected COCO's {CLASSES}")
    paths = {each.id: f"{subfolder}/{each.file_name}" for each in content.images}
    sizes = {each.id: (each.height, each.width) for each in content.images}
    if len(paths) < len(content.images):
        raise UserError(f"{file}: damaged: two of the images have the same id")
    files, others = list_files(folder, subfolder, ".jpg")
    existing = set(files)
    set_aside = [f"{path}: no such file" for path in paths.values() if path not in existing]
    objects = defaultdict(list)
    for place, each in enumerate(content.annotations):
        number = each.image_id
        if number not in sizes:
            raise UserError(f"{file}: damaged: annotations[{place}].image_id: no image has the id {number}")
        problem = _find_problem(each, labels, sizes[number])
        if problem is not None:
            set_aside.append(f"{paths[number]}: object {each.id} left out: {problem}")
        else:
            objects[number].append({
                "bbox": each.bbox, "category_id": each.category_id, "iscrowd": bool(each.iscrowd),
                "segmentation": each.segmentation,
            })  # fmt: skip
    numbers = [number for number in sorted(paths) if paths[number] in existing]
    return ImagesWithObjects(
        folder=folder, images=np.array([paths[number] for number in numbers], str), labels=labels,
        objects=[json.dumps([sizes[number], objects[number]]).encode() for number in numbers], set_aside=set_aside,
        notes=describe_others([*others, *(existing - set(paths.values()))]),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ the JSON file


@dataclass(frozen=True, slots=True)
class Category:
    """An entry of `categories`."""

    id: int


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An entry of `images`."""

    id: int
    file_name: str
    height: PositiveInt
    width: PositiveInt


@dataclass(frozen=True, slots=True)
class Annotation:
    """An entry of `annotations`: an object, or a crowd of them. The last three keys are optional."""

    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    id: Any = None
    iscrowd: bool | None = None
    segmentation: Any = None


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """The keys of a file that are read; others are ignored."""

    images: Annotated[list[ImageEntry], FailFast()]
    annotations: Annotated[list[Annotation], FailFast()]
    categories: Annotated[list[Category], FailFast()]


def _read_annotations(file: Path) -> AnnotationFile:
    """The content of a JSON file. Raises `UserError`, which names the entry and the key, if it is damaged."""
    try:
        return TypeAdapter(AnnotationFile).validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise UserError(f"{file}: damaged: {f'{place}: ' * bool(place)}{first['msg']}") from None


def _find_problem(annotation: Annotation, labels: Mapping[int, int], size: tuple[int, int]) -> str | None:
    """Why an object cannot be used; None if it can."""
    left, top, right, bottom = _convert_box(annotation.bbox, *size)
    if annotation.category_id not in labels:
        return f"unknown category {annotation.category_id}"
    return None if left < right and top < bottom else "its box has no area"


def _convert_box(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """(x, y, width, height) -> (x1, y1, x2, y2), clipped to the image."""
    left, top, box_width, box_height = box
    return max(0.0, left), max(0.0, top), min(float(width), left + box_width), min(float(height), top + box_height)


def _is_polygon(points: Any, reach: float) -> bool:
    """Whether a list is x, y, x, y, ... of at least 3 points, none further outside of the image than `reach`."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    return all(isinstance(each, (int, float)) and abs(each) <= 2 * reach for each in points)


def _read_mask(segmentation: Any, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A mask (height, width) of 0 and 1 from polygons or a run-length encoding. Raises `ValueError`."""
    if not segmentation:
        raise ValueError("an object has no segmentation, which head=mask_rcnn needs")
    if isinstance(segmentation, list) and not all(_is_polygon(each, 2 * max(height, width)) for each in segmentation):
        raise ValueError("a mask cannot be read: a polygon needs 3 points or more, in or near the image")
    try:
        mask: np.ndarray[Any, np.dtype[np.uint8]] = coco_mask.decode(coco_mask.segmToRle(segmentation, width, height))
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"a mask cannot be read: {str(error).splitlines()[0]}") from None
    if mask.shape != (height, width):
        raise ValueError(f"a mask has the size {mask.shape}, but the image has {(height, width)}")
    return mask
