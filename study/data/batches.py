"""The layout of a batch for every task.

A batch of N samples is a pair (images, targets):
    classification  images (N, C, H, W); targets: labels (N,)
    segmentation    images (N, C, H, W); targets: the class of every pixel (N, H, W), or `IGNORED` if it does not count
    detection       a list of images (C, H, W) of any size; targets: a list of dictionaries with boxes (M, 4) as
                    x1, y1, x2, y2 in pixels, labels (M,) from 1, and, if the network needs them, masks (M, H, W) of 0
                    and 1; in evaluation also iscrowd (M,), 1 for a region in which detections do not count
"""

from __future__ import annotations

from typing import Any

IGNORED = 255
Batch = tuple[Any, Any]


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cuts a batch into `parts` consecutive batches of equal size."""
    images, targets = batch
    size = len(images) // parts
    assert size * parts == len(images), f"{len(images)} samples cannot be cut into {parts} equal parts"
    return [(images[start : start + size], targets[start : start + size]) for start in range(0, len(images), size)]
