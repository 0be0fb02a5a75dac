"""Fashion-MNIST from its published idx files, compressed or not, in any of the usual folders."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST

from study.config.errors import UserError
from study.data.data_root import build_missing_files_error, resolve_data_root
from study.data.in_memory import LabeledImages

FOLDERS = ("", "FashionMNIST/raw", "fashion-mnist")  # flat, torchvision's layout, Debian's dataset-fashion-mnist
DEBIAN_ROOT = Path("/usr/share/datasets")
TRAIN_PREFIX, TEST_PREFIX = "train", "t10k"


def load(dataset: str, data_root: str | None) -> tuple[LabeledImages, LabeledImages]:
    """The published training and test splits, (N, 1, 28, 28) in 0..1.

    Without `data_root` they are taken from Debian's package if it is installed, otherwise torchvision downloads them.
    Raises `UserError` if the files are missing.
    """
    root, download = resolve_data_root(data_root), data_root is None
    return _load_split(root, TRAIN_PREFIX, download=download), _load_split(root, TEST_PREFIX, download=download)


def _load_split(root: Path, prefix: str, *, download: bool) -> LabeledImages:
    images, labels = (f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    if download and _find_file(root, images) is None:
        if _find_file(DEBIAN_ROOT, images):
            root = DEBIAN_ROOT
        else:
            with contextlib.suppress(OSError, RuntimeError):  # no network: the error below says what is missing
                FashionMNIST(root, download=True)
    found = _find_file(root, images), _find_file(root, labels)
    if found[0] is None or found[1] is None:
        raise build_missing_files_error("fashion_mnist", root, f"{images}[.gz] and {labels}[.gz]", FOLDERS)
    pixels = _read_idx(found[0], header=16).reshape(-1, 1, 28, 28)
    return LabeledImages(
        images=torch.from_numpy(pixels.copy()).float().div(255),
        labels=torch.from_numpy(_read_idx(found[1], header=8).astype(np.int64)),
    )


def _find_file(root: Path, name: str) -> Path | None:
    candidates = (root / folder / file for folder in FOLDERS for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The bytes of an idx file after its header of `header` bytes."""
    try:
        data = path.read_bytes()
        return np.frombuffer(gzip.decompress(data) if path.suffix == ".gz" else data, np.uint8, offset=header)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: damaged: {error}") from None
