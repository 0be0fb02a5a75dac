"""ImageNet-1k: in `train` and in `val`, one folder per class, named by its WordNet id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision import tv_tensors

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.data.data_root import find_dataset_folder
from study.data.image_files import PublishedSplit, SampleSource, describe_others, list_files, list_folders

DOWNLOAD_PAGE = "https://www.image-net.org/download.php"
WORDNET_ID = re.compile(r"n\d{8}")
SPLIT_FOLDERS = {"train": "train", "test": "val"}


@dataclass(frozen=True, kw_only=True)
class ImagesWithLabels(SampleSource):
    """Images and their classes, which are numbered by the sorted names of the folders in `train`."""

    labels: NDArray[np.int64]

    def read(self, index: int) -> tuple[tv_tensors.Image, int]:
        return self.read_image(index), int(self.labels[index])


def find_folder(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    required = tuple(SPLIT_FOLDERS.values())
    return find_dataset_folder("imagenet", root, ("imagenet", "ILSVRC2012", ""), required, DOWNLOAD_PAGE)


def open_split(folder: Path, split: PublishedSplit) -> ImagesWithLabels:
    """A published split. Raises `UserError` if its classes differ from those of `train`, or are too many."""
    place = folder / SPLIT_FOLDERS[split]
    classes = [Path(path).name for path in _list_classes(folder, SPLIT_FOLDERS["train"])[0]]
    folders, others = _list_classes(folder, place.name)
    found = [Path(path).name for path in folders]
    if not found:
        raise UserError(
            f"{place}: no class folders; expected {place.name}/<WordNet id>/*.JPEG. The published validation images "
            "lie flat in one folder: sort them into class folders by the ground truth of the development kit"
        )
    if found != classes:
        different = min(set(found) ^ set(classes))
        raise UserError(f"{place}: its classes are not those of train: {different} is in one of them only")
    allowed = DATASETS["imagenet"].classes
    if len(classes) > allowed:
        raise UserError(f"{place}: {len(classes)} class folders, but the data set has {allowed} classes")
    listings = [list_files(folder, path, ".JPEG", ".jpeg", ".jpg", ".png") for path in folders]
    empty = [path for path, (images, _) in zip(folders, listings, strict=True) if not images]
    if split == "train" and 0 < len(empty) < len(folders):
        raise UserError(f"{folder / empty[0]}: no training images of this class")
    return ImagesWithLabels(
        folder=folder,
        images=np.array([image for images, _ in listings for image in images], str),
        labels=np.repeat(np.arange(len(classes)), [len(images) for images, _ in listings]),
        notes=describe_others(others + [path for _, rest in listings for path in rest]),
    )


def _list_classes(folder: Path, subfolder: str) -> tuple[list[str], list[str]]:
    """The class folders of a split, and all else in it.

    If most folders have names of ImageNet, others are no classes: each would move the labels of those after it. Data of
    one's own may have any names.
    """
    folders, others = list_folders(folder, subfolder)
    published = [path for path in folders if WORDNET_ID.fullmatch(Path(path).name)]
    if 2 * len(published) <= len(folders):
        return folders, others
    return published, sorted({*others, *folders} - {*published})
