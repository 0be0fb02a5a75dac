"""The default data set: 1,797 scans of handwritten digits, 8x8 pixels, shipped with scikit-learn (UCI, 1998)."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits

from study.data.in_memory import LabeledImages


def load(dataset: str = "digits", data_root: str | None = None) -> tuple[LabeledImages, None]:
    """All images; no test split is published. The arguments have no effect, since scikit-learn contains the files."""
    return read_images(), None


@cache  # reading the text file takes longer than the first steps of a trial
def read_images() -> LabeledImages:
    """The images (1797, 1, 8, 8) in 0..1 and their labels. Callers share them and must not write to them."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return LabeledImages(images=images, labels=torch.from_numpy(bunch.target).long())
