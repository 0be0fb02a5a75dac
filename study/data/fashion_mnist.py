"""Fashion-MNIST from its published idx files, compressed or not, wherever a user already has them."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import FashionMNIST

from study.config.errors import UserError
from study.data.files import missing_files
from study.data.memory import Images

FOLDERS = ("", "FashionMNIST/raw", "fashion-mnist")  # plain, torchvision's layout, Debian's dataset-fashion-mnist
DEBIAN = Path("/usr/share/datasets")
PARTS = {"train": "train", "test": "t10k"}


def load(root: Path, split: str, *, download: bool) -> Images:
    """The published `train` or `test` split, (N, 1, 28, 28) in 0..1, from under `root`.

    With `download` (no root was given) Debian's package is taken where it is installed, else torchvision downloads
    into `root`. Raises `UserError` where nothing is found.
    """
    images, labels = (f"{PARTS[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    if download and _find(root, images) is None:
        if _find(DEBIAN, images):
            root = DEBIAN
        else:
            with contextlib.suppress(OSError, RuntimeError):  # no network: said below, with where it was looked for
                FashionMNIST(root, download=True)
    found = _find(root, images), _find(root, labels)
    if found[0] is None or found[1] is None:
        raise missing_files("fashion_mnist", root, f"{images}[.gz] and {labels}[.gz]", FOLDERS)
    pixels = _read(found[0], header=16).reshape(-1, 1, 28, 28)
    return Images(
        images=torch.from_numpy(pixels.copy()).float().div(255),
        labels=torch.from_numpy(_read(found[1], header=8).astype(np.int64)),
    )


def _find(root: Path, name: str) -> Path | None:
    candidates = (root / folder / file for folder in FOLDERS for file in (name, f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The bytes of an idx file behind its header."""
    try:
        data = path.read_bytes()
        return np.frombuffer(gzip.decompress(data) if path.suffix == ".gz" else data, np.uint8, offset=header)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: damaged: {error}") from None
