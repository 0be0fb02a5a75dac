"""Cityscapes with its fine annotations: 34 labels, of which 19 classes count."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import Cityscapes

from study.data.batches import IGNORED
from study.data.files import find_tree
from study.data.sample_source import UNKNOWN, MaskedImages, Part, list_files, pair_files

PAGE = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
FOLDERS = {"train": "train", "test": "val"}  # the published test part has no labels
IMAGE, LABEL_IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
CLASSES = 19


def find(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    needed = [f"{kind}/{part}" for kind in ("leftImg8bit", "gtFine") for part in FOLDERS.values()]
    return find_tree("cityscapes", root, ("cityscapes", ""), needed, PAGE)


def open_part(folder: Path, part: Part) -> MaskedImages:
    """A published part: of every city."""
    place = f"leftImg8bit/{FOLDERS[part]}"
    cities = sorted(city.name for city in (folder / place).iterdir() if city.is_dir())
    images = [image for city in cities for image in list_files(folder, f"{place}/{city}", IMAGE)]
    parts = [
        pair_files(folder, images, [_mask_of(image, ending) for image in images], table)
        for ending, table in ((LABEL_IDS, label_table()), (TRAIN_IDS, train_id_table()))
    ]
    return max(parts, key=len)  # the first, published one, unless only the others are there


def _mask_of(image: str, ending: str) -> str:
    return f"gtFine{image.removeprefix('leftImg8bit').removesuffix(IMAGE)}{ending}"


def label_table() -> torch.Tensor:
    """Label (256,) -> class, or `IGNORED`."""
    table = torch.full((256,), UNKNOWN)
    for label in Cityscapes.classes:
        if label.id >= 0:  # a licence plate's -1 is in no mask
            table[label.id] = label.train_id if label.train_id >= 0 else IGNORED
    return table


def train_id_table() -> torch.Tensor:
    """The same of masks that the data set's scripts have mapped already."""
    table = torch.full((256,), UNKNOWN)
    table[:CLASSES] = torch.arange(CLASSES)
    table[IGNORED] = IGNORED
    return table
