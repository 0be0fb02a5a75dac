"""Seeds computed by hashing: the same on every machine, whatever the order in which they are computed."""

from __future__ import annotations

import hashlib

ROLES = ("init", "data", "split")
"""What has a seed of its own: initialization, order and augmentation of the training data, and the data split."""


def derive_seeds(replicate: int) -> dict[str, int]:
    """Returns a seed for each role. It depends on the replicate only, so that trials of one replicate are paired."""
    return {role: derive_seed(role, replicate) for role in ROLES}


def derive_seed(*parts: int | str) -> int:
    """Hashes any parts (seed, role, epoch, ...) to a seed of 63 bits."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
