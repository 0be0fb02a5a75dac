"""Data sets of image files: what a published part is, and how its images and masks are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

Part = Literal["train", "test"]
UNKNOWN = -1  # in a table of labels: no label of this data set
Names = NDArray[np.str_]
"""Relative paths. As a list of strings they would be copied into every worker, by counting references to them."""


class SampleSource(Protocol):
    """The samples of a published part, as they lie on disk.

    set_aside: samples that lack a file, and labels that cannot be used: a line each.
    """

    set_aside: Sequence[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's file, below the data set's folder."""

    def read(self, index: int) -> tuple[tv_tensors.Image, Any]:
        """An image (3, H, W) in 0..255 and its target, as torchvision's transforms take them.

        Raises `OSError` or `ValueError` where they cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """Images with a mask of the classes of their pixels. `classes` (256,) maps the files' labels to classes."""

    folder: Path
    images: Names
    masks: Names
    classes: Tensor
    set_aside: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = read_image(self.folder / self.images[index])
        mask = read_mask(self.folder / self.masks[index], self.classes)
        if image.shape[1:] != mask.shape:
            raise ValueError(f"its mask is of another size: {tuple(mask.shape)}, not {tuple(image.shape[1:])}")
        return image, mask


def list_files(folder: Path, place: str, *endings: str) -> list[str]:
    """The files of `place` below `folder`, in order, with their paths from `folder`."""
    with os.scandir(folder / place) as entries:
        return sorted(f"{place}/{entry.name}" for entry in entries if entry.name.endswith(endings))


def pair_files(folder: Path, images: Sequence[str], masks: Sequence[str], classes: Tensor) -> MaskedImages:
    """Images, and the masks that belong to them; an image whose mask is not there is set aside."""
    pairs = [(image, mask) for image, mask in zip(images, masks, strict=True) if (folder / mask).is_file()]
    both = np.array(pairs, str).reshape(-1, 2)
    there = {mask for _, mask in pairs}
    missing = [f"{image}: no {mask}" for image, mask in zip(images, masks, strict=True) if mask not in there]
    return MaskedImages(folder=folder, images=both[:, 0], masks=both[:, 1], classes=classes, set_aside=missing)


def read_image(path: Path) -> tv_tensors.Image:
    """(3, H, W) in 0..255. Raises `OSError` or `ValueError`."""
    return tv_tensors.Image(pil_to_tensor(_decode(path).convert("RGB")))


def read_mask(path: Path, classes: Tensor) -> tv_tensors.Mask:
    """Classes (H, W) from an image of labels, by a table (256,). Raises `OSError` or `ValueError`."""
    picture = _decode(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path.name} is no mask of one byte a pixel: its mode is {picture.mode}")
    labels = torch.from_numpy(np.array(picture))
    mask = classes[labels.long()]
    if (mask == UNKNOWN).any():
        unknown = sorted(set(labels[mask == UNKNOWN].tolist()))
        raise ValueError(f"{path.name} has unknown labels: {', '.join(map(str, unknown[:5]))}")
    return tv_tensors.Mask(mask.to(torch.uint8))


def _decode(path: Path) -> Image.Image:
    try:
        with path.open("rb") as file:
            picture = Image.open(file)
            picture.load()
            return picture
    except (SyntaxError, Image.DecompressionBombError) as error:  # of broken files; most are an OSError
        raise ValueError(f"{path.name} does not decode: {error}") from None
