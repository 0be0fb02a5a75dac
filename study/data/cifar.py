"""CIFAR-10 and CIFAR-100, through torchvision.

Their files are Python pickles, which can run code when they are opened. So only files with the published checksums are.
"""

from __future__ import annotations

import contextlib

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from study.config.errors import UserError
from study.data.data_root import build_missing_files_error, resolve_data_root
from study.data.in_memory import LabeledImages


def load(dataset: str, data_root: str | None) -> tuple[LabeledImages, LabeledImages]:
    """The published training and test splits of `cifar10` or `cifar100`, (N, 3, 32, 32) in 0..1.

    Without `data_root` torchvision downloads them. Raises `UserError` if files are missing or damaged.
    """
    published = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset]
    root = resolve_data_root(data_root)
    if data_root is None:
        with contextlib.suppress(Exception):  # the errors below say which file is missing or damaged
            published(root, download=True)
    meta = published.meta["filename"], published.meta["md5"]
    for name, checksum in (*published.train_list, *published.test_list, meta):
        path = root / published.base_folder / name
        if not path.is_file():
            raise build_missing_files_error(dataset, root, f"{published.base_folder}/{name}", ("",))
        if not check_integrity(path, checksum):
            raise UserError(f"{path}: damaged: its MD5 checksum is not the published one; replace the file")
    train, test = (_load_split(published(root, train=train)) for train in (True, False))
    return train, test


def _load_split(data: CIFAR10) -> LabeledImages:
    return LabeledImages(
        images=torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div(255).contiguous(),
        labels=torch.tensor(data.targets),
    )
