"""Seeds by hashing counters: the same on every machine, and independent of the order in which they are asked for."""

from __future__ import annotations

import hashlib

ROLES = ("init", "data", "split")


def derive_seeds(replicate: int) -> dict[str, int]:
    """A seed for each role of randomness. They depend on the replicate alone: equal replicates are paired."""
    return {role: derive_seed(role, replicate) for role in ROLES}


def derive_seed(*parts: int | str) -> int:
    """Hashes a counter (seed, role, epoch, ...) to 63 bits. The same on every machine and version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
