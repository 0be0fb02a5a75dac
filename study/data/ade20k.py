"""ADE20K as in the scene parsing benchmark of 2016: 150 classes; the label 0 means none of them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from study.data.batches import IGNORED
from study.data.data_root import find_dataset_folder
from study.data.image_files import UNKNOWN_LABEL, ImagesWithMasks, PublishedSplit, list_files, pair_with_masks

DOWNLOAD_PAGE = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
SPLIT_FOLDERS = {"train": "training", "test": "validation"}
CLASSES = 150


def find_folder(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    required = [f"{kind}/{split}" for kind in ("images", "annotations") for split in SPLIT_FOLDERS.values()]
    return find_dataset_folder("ade20k", root, ("ADEChallengeData2016", "ade20k", ""), required, DOWNLOAD_PAGE)


def open_split(folder: Path, split: PublishedSplit) -> ImagesWithMasks:
    """A published split."""
    subfolder = SPLIT_FOLDERS[split]
    images, others = list_files(folder, f"images/{subfolder}", ".jpg")
    masks = [f"annotations/{subfolder}/{PurePosixPath(image).stem}.png" for image in images]
    return pair_with_masks(folder, images, masks, build_label_table(), others)


def build_label_table() -> torch.Tensor:
    """A table (256,) from labels to classes: label 0 is ignored, label k is class k - 1."""
    table = torch.full((256,), UNKNOWN_LABEL)
    table[0] = IGNORED
    table[1 : CLASSES + 1] = torch.arange(CLASSES)
    return table
