"""CIFAR-10 and CIFAR-100, through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from study.data.data_root import build_missing_files_error, resolve_data_root
from study.data.in_memory import LabeledImages


def load(dataset: str, data_root: str | None) -> tuple[LabeledImages, LabeledImages]:
    """The published training and test splits of `cifar10` or `cifar100`, (N, 3, 32, 32) in 0..1.

    Without `data_root` torchvision downloads them. Raises `UserError` if the files are missing.
    """
    root, download = resolve_data_root(data_root), data_root is None
    train, test = (_load_split(dataset, root, train=train, download=download) for train in (True, False))
    return train, test


def _load_split(dataset: str, root: Path, *, train: bool, download: bool) -> LabeledImages:
    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset]
    try:
        data = published(root, train=train, download=download)
    except (RuntimeError, OSError):  # the files are missing, or there is no network to download them
        files = f"{published.base_folder}/ (python version)"
        raise build_missing_files_error(dataset, root, files, ("",)) from None
    return LabeledImages(
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div(255).contiguous(),
        labels=torch.tensor(data.targets),
    )
