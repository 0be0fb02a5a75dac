"""The embedded default: 1,797 scans of handwritten digits, 8x8 pixels, shipped inside scikit-learn (UCI, 1998)."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits

from study.data.memory import Images


@cache  # reading the text file takes longer than a trial's first steps
def load() -> Images:
    """All images, (1797, 1, 8, 8) in 0..1, and their labels. Not to be written to."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return Images(images=images, labels=torch.from_numpy(bunch.target).long())
