"""ImageNet-1k: a folder for each class, named by its WordNet id, in train and in val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision import tv_tensors

from study.config.errors import UserError
from study.data.files import find_tree
from study.data.sample_source import Names, Part, list_files, read_image

PAGE = "https://www.image-net.org/download.php"
FOLDERS = {"train": "train", "test": "val"}


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Images (paths below `folder`) and their classes, by the sorted names of the folders in train."""

    folder: Path
    images: Names
    labels: NDArray[np.int64]
    set_aside: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def read(self, index: int) -> tuple[tv_tensors.Image, int]:
        return read_image(self.folder / self.images[index]), int(self.labels[index])


def find(root: Path) -> Path:
    """The data set's folder. Raises `UserError`."""
    return find_tree("imagenet", root, ("imagenet", "ILSVRC2012", ""), tuple(FOLDERS.values()), PAGE)


def open_part(folder: Path, part: Part) -> ClassFolders:
    """A published part. Raises `UserError` where its classes are not those of train."""
    place = folder / FOLDERS[part]
    classes, here = _classes(folder / FOLDERS["train"]), _classes(place)
    if not here:
        raise UserError(
            f"{place}: no folder for each class; expected {place.name}/<WordNet id>/*.JPEG. The published validation "
            "images lie flat: sort them into folders by the development kit's ground truth"
        )
    if here != classes:
        different = min(set(here) ^ set(classes))
        raise UserError(f"{place}: its classes are not those of train: {different} is in one of them only")
    files = [list_files(folder, f"{place.name}/{name}", ".JPEG", ".jpeg", ".jpg", ".png") for name in classes]
    return ClassFolders(
        folder=folder,
        images=np.array([name for names in files for name in names], str),
        labels=np.repeat(np.arange(len(classes)), [len(names) for names in files]),
    )


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
