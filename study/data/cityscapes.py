"""Cityscapes with its fine annotations: 34 labels, 19 of which are classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import Cityscapes

from study.data.batches import IGNORED
from study.data.data_root import find_dataset_folder
from study.data.image_files import (
    UNKNOWN_LABEL,
    ImagesWithMasks,
    PublishedSplit,
    list_files,
    list_folders,
    pair_with_masks,
)

DOWNLOAD_PAGE = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
SPLIT_FOLDERS = {"train": "train", "test": "val"}  # the published test split has no labels
IMAGE, LABEL_IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
CLASSES = 19


def find_folder(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    required = [f"{kind}/{split}" for kind in ("leftImg8bit", "gtFine") for split in SPLIT_FOLDERS.values()]
    return find_dataset_folder("cityscapes", root, ("cityscapes", ""), required, DOWNLOAD_PAGE)


def open_split(folder: Path, split: PublishedSplit) -> ImagesWithMasks:
    """A published split, with the images of all its cities."""
    cities, others = list_folders(folder, f"leftImg8bit/{SPLIT_FOLDERS[split]}")
    listings = [list_files(folder, city, IMAGE) for city in cities]
    images = [image for files, _ in listings for image in files]
    others += [path for _, rest in listings for path in rest]
    candidates = [
        pair_with_masks(folder, images, [_find_mask(image, ending) for image in images], table, others)
        for ending, table in ((LABEL_IDS, build_label_table()), (TRAIN_IDS, build_train_id_table()))
    ]
    return max(candidates, key=len)  # the published masks, unless more of the converted ones exist


def _find_mask(image: str, ending: str) -> str:
    """The path of an image's mask."""
    return f"gtFine{image.removeprefix('leftImg8bit').removesuffix(IMAGE)}{ending}"


def build_label_table() -> torch.Tensor:
    """A table (256,) from the labels of the published masks to classes or `IGNORED`."""
    table = torch.full((256,), UNKNOWN_LABEL)
    for label in Cityscapes.classes:
        if label.id >= 0:  # the -1 of license plates is in no mask
            table[label.id] = label.train_id if label.train_id >= 0 else IGNORED
    return table


def build_train_id_table() -> torch.Tensor:
    """A table (256,) for masks that the data set's scripts have already converted to classes."""
    table = torch.full((256,), UNKNOWN_LABEL)
    table[:CLASSES] = torch.arange(CLASSES)
    table[IGNORED] = IGNORED
    return table
