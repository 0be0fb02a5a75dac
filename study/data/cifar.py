"""CIFAR-10 and CIFAR-100 through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from study.data.files import missing_files
from study.data.memory import Images


def load(root: Path, split: str, *, classes: int, download: bool) -> Images:
    """The published `train` or `test` split, (N, 3, 32, 32) in 0..1.

    Raises `UserError` where the files are neither under `root` nor may be downloaded.
    """
    dataset = CIFAR10 if classes == 10 else CIFAR100
    try:
        data = dataset(root, train=split == "train", download=download)
    except (RuntimeError, OSError):  # not there, or no network to download it
        raise missing_files(f"cifar{classes}", root, f"{dataset.base_folder}/ (python version)", ("",)) from None
    return Images(
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div(255).contiguous(),
        labels=torch.tensor(data.targets),
    )
