"""ADE20K as in the scene parsing benchmark of 2016: 150 classes, and 0 for what is none of them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from study.data.batches import IGNORED
from study.data.files import find_tree
from study.data.sample_source import UNKNOWN, MaskedImages, Part, list_files, pair_files

PAGE = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
FOLDERS = {"train": "training", "test": "validation"}
CLASSES = 150


def find(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    needed = [f"{kind}/{part}" for kind in ("images", "annotations") for part in FOLDERS.values()]
    return find_tree("ade20k", root, ("ADEChallengeData2016", "ade20k", ""), needed, PAGE)


def open_part(folder: Path, part: Part) -> MaskedImages:
    """A published part."""
    place = FOLDERS[part]
    images = list_files(folder, f"images/{place}", ".jpg")
    masks = [f"annotations/{place}/{PurePosixPath(image).stem}.png" for image in images]
    return pair_files(folder, images, masks, label_table())


def label_table() -> torch.Tensor:
    """Label (256,) -> class: 0 does not count, k is class k - 1."""
    table = torch.full((256,), UNKNOWN)
    table[0] = IGNORED
    table[1 : CLASSES + 1] = torch.arange(CLASSES)
    return table
