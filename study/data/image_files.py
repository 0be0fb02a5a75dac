"""Data sets of image files: the interface to a published split, and how images and masks are listed and read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from study.config.schema import TrialConfig
from study.data.fingerprint import describe_files

PublishedSplit = Literal["train", "test"]
RGB_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # 8 bits per channel
LITTER = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
    "@eadir", "icon\r",
}  # fmt: skip
"""Files and folders that operating systems leave in others, in lower case."""
UNKNOWN_LABEL = -1  # in a label table: the data set has no such label
RelativePaths = NDArray[np.str_]
"""An array, because reading a list of strings changes their reference counts, which copies them into every worker."""


@dataclass(frozen=True, kw_only=True)
class SampleSource(ABC):
    """The samples of a published split, in files.

    images: paths of the images, relative to `folder`, which is the data set's.
    set_aside: one line for each sample that lacks a file and each label that cannot be used.
    notes: lines about the split as a whole.
    """

    folder: Path
    images: RelativePaths
    set_aside: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> Iterator[bytes]:
        """What identifies the samples, for a fingerprint: their files and targets."""
        yield describe_files(self.folder, self.images)

    def name(self, index: int) -> str:
        return str(self.images[index])

    def explain(self, index: int, error: OSError | ValueError) -> str:
        """A line that says why a sample cannot be used."""
        name, reason = self.name(index), getattr(error, "strerror", None) or str(error) or "cannot be read"
        return f"{name}: {reason.splitlines()[0].removeprefix(f'{PurePosixPath(name).name} ')}"

    def read_image(self, index: int) -> tv_tensors.Image:
        """An image (3, H, W) in 0..255. Raises `OSError` or `ValueError` if it cannot be used."""
        return tv_tensors.Image(pil_to_tensor(convert_to_rgb(decode_image(self.folder / self.images[index]))))

    def select_targets(self, config: TrialConfig, *, training: bool) -> SampleSource:
        """The same samples with the parts of their targets that training, or evaluation, needs; here with all."""
        return self

    @abstractmethod
    def read(self, index: int) -> tuple[tv_tensors.Image, Any]:
        """An image and its target, as torchvision's transforms take them. Raises the same errors."""


@dataclass(frozen=True, kw_only=True)
class ImagesWithMasks(SampleSource):
    """Images and masks of the classes of their pixels. `label_table` (256,) maps the labels in the files to classes."""

    masks: RelativePaths
    label_table: Tensor

    def describe(self) -> Iterator[bytes]:
        yield from super().describe()
        yield describe_files(self.folder, self.masks)

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = self.read_image(index)
        mask = read_mask(self.folder / self.masks[index], self.label_table)
        if image.shape[1:] != mask.shape:
            raise ValueError(f"its mask is of another size: {tuple(mask.shape)}, not {tuple(image.shape[1:])}")
        return image, mask


def list_files(folder: Path, subfolder: str, *endings: str) -> tuple[list[str], list[str]]:
    """The sorted paths, relative to `folder`, of the files in `subfolder` with one of the endings; and of all else."""
    # Links are not followed: this would open every file, and one that leads nowhere is found when it is read.
    return _list_entries(
        folder, subfolder, lambda entry: entry.name.endswith(endings) and not entry.is_dir(follow_symlinks=False)
    )


def list_folders(folder: Path, subfolder: str) -> tuple[list[str], list[str]]:
    """The sorted paths, relative to `folder`, of the folders in `subfolder`; and of all else in it."""
    return _list_entries(folder, subfolder, lambda entry: entry.is_dir())


def _list_entries(
    folder: Path, subfolder: str, is_data: Callable[[os.DirEntry[str]], bool]
) -> tuple[list[str], list[str]]:
    """The sorted paths of the entries that are data; and of all others, to which hidden entries and litter belong."""
    data, others = list[str](), list[str]()
    with os.scandir(folder / subfolder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") or entry.name.lower() in LITTER
            (data if not hidden and is_data(entry) else others).append(f"{subfolder}/{entry.name}")
    return sorted(data), sorted(others)


def describe_others(others: Sequence[str]) -> list[str]:
    """A line that counts the files and folders that are not data, if there are any."""
    if not others:
        return []
    return [f"files or folders that are not part of the data set, and not read: {len(others)}, such as {min(others)!r}"]


def pair_with_masks(
    folder: Path, images: Sequence[str], masks: Sequence[str], label_table: Tensor, others: Sequence[str]
) -> ImagesWithMasks:
    """Images with their masks; an image whose mask does not exist is set aside, and `others` are noted as no images."""
    pairs = [(image, mask) for image, mask in zip(images, masks, strict=True) if (folder / mask).is_file()]
    paths = np.array(pairs, str).reshape(-1, 2)
    found = {mask for _, mask in pairs}
    missing = [f"{image}: no {mask}" for image, mask in zip(images, masks, strict=True) if mask not in found]
    return ImagesWithMasks(
        folder=folder, images=paths[:, 0], masks=paths[:, 1], label_table=label_table, set_aside=missing,
        notes=describe_others(others),
    )  # fmt: skip


def read_mask(path: Path, label_table: Tensor) -> tv_tensors.Mask:
    """The class of every pixel (H, W) of an image of labels, by a table (256,). Raises `OSError` or `ValueError`."""
    picture = decode_image(path, lossless=True)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path.name} is not a mask with one byte per pixel: its mode is {picture.mode}")
    labels = torch.from_numpy(np.array(picture))
    mask = label_table[labels.long()]
    if (mask == UNKNOWN_LABEL).any():
        unknown = sorted(set(labels[mask == UNKNOWN_LABEL].tolist()))
        raise ValueError(f"{path.name} has unknown labels: {', '.join(map(str, unknown[:5]))}")
    return tv_tensors.Mask(mask.to(torch.uint8))


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """An image of mode RGB. Raises `ValueError` if the conversion would lose what the image shows."""
    if picture.mode.startswith("I;16"):  # the upper byte; `convert` would clip all values to 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode not in RGB_MODES:
        raise ValueError(f"its mode is {picture.mode}, whose range of values is not known; allowed: 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError("it is transparent in places, where its colours have no meaning")
    return picture.convert("RGB")


def decode_image(path: Path, *, lossless: bool = False) -> Image.Image:
    """An image as Pillow reads it. Raises `OSError` or `ValueError` if it cannot be read.

    lossless: refuses images whose values differ from those that were saved.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            raise OSError(f"{path.name} is missing, or is no regular file")
        with path.open("rb") as file:
            picture = Image.open(file)
            # Pillow stretches gray values of 2 or 4 bits to 0..255.
            if lossless and (picture.format != "PNG" or picture.tile[0].args in ("L;2", "L;4")):
                raise ValueError(f"{path.name} is not a PNG file with 8 bits per pixel")
            picture.load()
            return picture
    except UnidentifiedImageError:
        raise ValueError(f"{path.name} is not an image") from None
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f"{path.name} is damaged: {error}".removesuffix(": ")) from None
