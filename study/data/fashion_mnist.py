"""Fashion-MNIST from its published idx files, compressed or not, in any of the usual folders."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.data.data_root import build_missing_files_error, resolve_data_root
from study.data.in_memory import LabeledImages

FOLDERS = ("", "FashionMNIST/raw", "fashion-mnist")  # flat, torchvision's layout, Debian's dataset-fashion-mnist
DEBIAN_ROOT = Path("/usr/share/datasets")
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the files without compression.

The published checksums, in `FashionMNIST.resources`, are the MD5 of the files as their authors compressed them; Debian
compressed the same content again.
"""


def load(dataset: str, data_root: str | None) -> tuple[LabeledImages, LabeledImages]:
    """The published training and test splits, (N, 1, 28, 28) in 0..1.

    Without `data_root` they are taken from Debian's package if it is installed, otherwise torchvision downloads them.
    Raises `UserError` if files are missing or damaged.
    """
    root, facts = resolve_data_root(data_root), DATASETS["fashion_mnist"]
    assert facts.test is not None
    if data_root is None and not _has_files(root):
        if _has_files(DEBIAN_ROOT):
            root = DEBIAN_ROOT
        else:
            with contextlib.suppress(Exception):  # the errors below say which file is missing or damaged
                FashionMNIST(root, download=True)
    return _load_split(root, "train", facts.train), _load_split(root, "t10k", facts.test)


def _load_split(root: Path, prefix: str, count: int) -> LabeledImages:
    images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    found = _find_file(root, images), _find_file(root, labels)
    if found[0] is None or found[1] is None:
        raise build_missing_files_error("fashion_mnist", root, f"{images}[.gz] and {labels}[.gz]", FOLDERS)
    side = DATASETS["fashion_mnist"].image_size
    pixels, changed_images = _read_idx(found[0], images, (count, side, side))
    classes, changed_labels = _read_idx(found[1], labels, (count,))
    return LabeledImages(
        images=pixels.unsqueeze(1).float().div(255), labels=classes.long(),
        unpublished={**changed_images, **changed_labels},
    )  # fmt: skip


def _has_files(root: Path) -> bool:
    return all(_find_file(root, name) for name in DIGESTS)


def _find_file(root: Path, name: str) -> Path | None:
    candidates = (root / folder / file for folder in FOLDERS for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path, name: str, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, str]]:
    """The bytes of an idx file, and its path and SHA-256 if they are not the published ones.

    Raises `UserError` if the file is damaged.
    """
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)  # type of a byte, dimensions, their sizes
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if len(content) != size or not content.startswith(header):
        expected = " x ".join(map(str, shape))
        raise UserError(f"{path}: damaged: it is not an idx file of {expected} bytes ({size} in all)")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header)).reshape(shape)
    digest = hashlib.sha256(content).hexdigest()
    return values, {} if digest == DIGESTS[name] else {str(path): digest}
