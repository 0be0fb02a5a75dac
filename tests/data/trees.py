"""Small folders of files in the published formats of the streamed data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 56)  # height, width


def write_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1]).save(path)


def write_mask(path: Path, labels: Any, size: tuple[int, int] = SIZE) -> None:
    """Writes a mask with vertical stripes of `labels`, from left to right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    row = np.repeat(np.array(labels, np.uint8), -(-width // len(labels)))[:width]
    Image.fromarray(np.tile(row, (height, 1))).save(path)


def write_imagenet(root: Path, train: int = 8, test: int = 3) -> Path:
    """Images that alternate between two classes."""
    folder = root / "imagenet"
    for part, count in (("train", train), ("val", test)):
        for index in range(count):
            wnid = ("n01440764", "n01443537")[index % 2]
            write_image(folder / part / wnid / f"{wnid}_{index}.JPEG", index + 100 * (part == "val"))
    return folder


def write_ade20k(root: Path, train: int = 8, test: int = 3) -> Path:
    """Images of different sizes; masks with the labels 0, 1, 150 and the image's index plus 1."""
    folder = root / "ADEChallengeData2016"
    for part, count in (("training", train), ("validation", test)):
        for index in range(count):
            stem, size = f"ADE_{part}_{index:08}", (SIZE[0] + 4 * index, SIZE[1])
            write_image(folder / "images" / part / f"{stem}.jpg", index, size)
            write_mask(folder / "annotations" / part / f"{stem}.png", [0, 1, 150, index + 1], size)
    return folder


def write_cityscapes(root: Path, train: int = 8, test: int = 3, kind: str = "labelIds") -> Path:
    """Masks with road (7), an ignored label (0) and bicycle (33), or with the train ids they are converted to."""
    folder = root / "cityscapes"
    labels = [7, 0, 33] if kind == "labelIds" else [0, 255, 18]
    for part, count in (("train", train), ("val", test)):
        for index in range(count):
            city = ("aachen", "bochum")[index % 2]
            stem = f"{city}_000000_{index:06}"
            write_image(folder / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", index)
            write_mask(folder / "gtFine" / part / city / f"{stem}_gtFine_{kind}.png", labels)
    return folder


CATEGORIES = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def write_coco(root: Path, train: int = 8, test: int = 3, edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Each image has a rectangle as a polygon, one as run lengths, and a crowd; `edit` changes the training JSON."""
    folder = root / "coco"
    height, width = SIZE
    for part, count in (("train2017", train), ("val2017", test)):
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": n} for n in CATEGORIES]}
        for index in range(count):
            write_image(folder / part / f"{index:012}.jpg", index)
            content["images"].append({"id": index, "file_name": f"{index:012}.jpg", "height": height, "width": width})
            polygon = [[4, 8, 20, 8, 20, 24, 4, 24]]
            runs = {"size": [height, width], "counts": [30 * height, 10 * height, (width - 40) * height]}
            content["annotations"] += [
                {"id": 3 * index, "image_id": index, "category_id": 1, "iscrowd": 0, "bbox": [4, 8, 16, 16],
                 "segmentation": polygon},
                {"id": 3 * index + 1, "image_id": index, "category_id": 90, "iscrowd": 0,
                 "bbox": [30, 0, 10, height + 9], "segmentation": runs},
                {"id": 3 * index + 2, "image_id": index, "category_id": 2, "iscrowd": 1,
                 "bbox": [0, 0, width, height], "segmentation": runs},
            ]  # fmt: skip
        if edit and part == "train2017":
            edit(content)
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    "imagenet": write_imagenet, "ade20k": write_ade20k, "cityscapes": write_cityscapes, "coco": write_coco,
}  # fmt: skip
