"""ImageNet-1k: in `train` and in `val`, one folder per class, named by its WordNet id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision import tv_tensors

from study.config.errors import UserError
from study.data.data_root import find_dataset_folder
from study.data.image_files import PublishedSplit, SampleSource, list_files

DOWNLOAD_PAGE = "https://www.image-net.org/download.php"
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
    """A published split. Raises `UserError` if its classes differ from those of `train`."""
    place = folder / SPLIT_FOLDERS[split]
    classes, found = _list_classes(folder / SPLIT_FOLDERS["train"]), _list_classes(place)
    if not found:
        raise UserError(
            f"{place}: no class folders; expected {place.name}/<WordNet id>/*.JPEG. The published validation images "
            "lie flat in one folder: sort them into class folders by the ground truth of the development kit"
        )
    if found != classes:
        different = min(set(found) ^ set(classes))
        raise UserError(f"{place}: its classes are not those of train: {different} is in one of them only")
    files = [list_files(folder, f"{place.name}/{name}", ".JPEG", ".jpeg", ".jpg", ".png") for name in classes]
    return ImagesWithLabels(
        folder=folder,
        images=np.array([name for names in files for name in names], str),
        labels=np.repeat(np.arange(len(classes)), [len(names) for names in files]),
    )


def _list_classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
