"""Data sets of image files: the interface to a published split, and how images and masks are listed and read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

PublishedSplit = Literal["train", "test"]
UNKNOWN_LABEL = -1  # in a label table: the data set has no such label
RelativePaths = NDArray[np.str_]
"""An array, because reading a list of strings changes their reference counts, which copies them into every worker."""


@dataclass(frozen=True, kw_only=True)
class SampleSource(ABC):
    """The samples of a published split, in files.

    images: paths of the images, relative to `folder`, which is the data set's.
    set_aside: one line for each sample that lacks a file and each label that cannot be used.
    """

    folder: Path
    images: RelativePaths
    set_aside: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def read_image(self, index: int) -> tv_tensors.Image:
        """An image (3, H, W) in 0..255. Raises `OSError` or `ValueError` if it cannot be used."""
        return tv_tensors.Image(pil_to_tensor(_decode(self.folder / self.images[index]).convert("RGB")))

    @abstractmethod
    def read(self, index: int) -> tuple[tv_tensors.Image, Any]:
        """An image and its target, as torchvision's transforms take them. Raises the same errors."""


@dataclass(frozen=True, kw_only=True)
class ImagesWithMasks(SampleSource):
    """Images and masks of the classes of their pixels. `label_table` (256,) maps the labels in the files to classes."""

    masks: RelativePaths
    label_table: Tensor

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = self.read_image(index)
        mask = read_mask(self.folder / self.masks[index], self.label_table)
        if image.shape[1:] != mask.shape:
            raise ValueError(f"its mask is of another size: {tuple(mask.shape)}, not {tuple(image.shape[1:])}")
        return image, mask


def list_files(folder: Path, subfolder: str, *endings: str) -> list[str]:
    """The sorted paths, relative to `folder`, of the files in `subfolder` with one of the endings."""
    with os.scandir(folder / subfolder) as entries:
        return sorted(f"{subfolder}/{entry.name}" for entry in entries if entry.name.endswith(endings))


def pair_with_masks(folder: Path, images: Sequence[str], masks: Sequence[str], label_table: Tensor) -> ImagesWithMasks:
    """Images with their masks; an image whose mask does not exist is set aside."""
    pairs = [(image, mask) for image, mask in zip(images, masks, strict=True) if (folder / mask).is_file()]
    paths = np.array(pairs, str).reshape(-1, 2)
    found = {mask for _, mask in pairs}
    missing = [f"{image}: no {mask}" for image, mask in zip(images, masks, strict=True) if mask not in found]
    return ImagesWithMasks(
        folder=folder, images=paths[:, 0], masks=paths[:, 1], label_table=label_table, set_aside=missing
    )


def read_mask(path: Path, label_table: Tensor) -> tv_tensors.Mask:
    """The class of every pixel (H, W) of an image of labels, by a table (256,). Raises `OSError` or `ValueError`."""
    picture = _decode(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path.name} is not a mask with one byte per pixel: its mode is {picture.mode}")
    labels = torch.from_numpy(np.array(picture))
    mask = label_table[labels.long()]
    if (mask == UNKNOWN_LABEL).any():
        unknown = sorted(set(labels[mask == UNKNOWN_LABEL].tolist()))
        raise ValueError(f"{path.name} has unknown labels: {', '.join(map(str, unknown[:5]))}")
    return tv_tensors.Mask(mask.to(torch.uint8))


def _decode(path: Path) -> Image.Image:
    try:
        with path.open("rb") as file:
            picture = Image.open(file)
            picture.load()
            return picture
    except (SyntaxError, Image.DecompressionBombError) as error:  # other decoding errors are `OSError`
        raise ValueError(f"{path.name} does not decode: {error}") from None
