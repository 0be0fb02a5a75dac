"""Fingerprints of the files that a trial is trained on, so that a study is not averaged over different images.

A fingerprint does not depend on the folder that the files are in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PUBLISHED = "published"
"""The fingerprint of files whose content is the published one."""
SIZES = 1000
"""Number of files whose size is part of a fingerprint: on a network disk, the sizes of a million files take minutes."""


def build_fingerprint(content: Iterable[bytes]) -> str:
    """The fingerprint of what identifies the files, part by part; `published` if there is nothing to add to that."""
    parts = list(content)
    if not parts:
        return PUBLISHED
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"sha256:{digest.hexdigest()[:16]}"


def describe_files(folder: Path, names: NDArray[np.str_]) -> bytes:
    """The names of files, and the sizes of at most `SIZES` of them; -1 for a file that cannot be found."""
    sizes = [_find_size(folder / name) for name in names[:: len(names) // SIZES + 1]]
    return os.fsencode("\0".join([*names, *map(str, sizes)]))


def _find_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
