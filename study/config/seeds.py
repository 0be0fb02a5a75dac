"""Seeds computed by hashing: the same on every machine, whatever the order in which they are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

SeedRole = Literal["init", "data", "split"]
ROLES: tuple[SeedRole, ...] = get_args(SeedRole)
"""What has a seed of its own: initialization, order and augmentation of the training data, and the data split."""
MAX_REPLICATES = 1000
"""Replicates have numbers below this. Number 1000 k + r is the seed run in which the k-th role alone has the seed of
replicate r, and the others have those of replicate 0."""


def derive_seeds(replicate: int) -> dict[str, int]:
    """Returns a seed for each role. It depends on the replicate only, so that trials of one replicate are paired."""
    role = find_seed_role(replicate)
    own = replicate % MAX_REPLICATES
    return {name: derive_seed(name, own if role in (None, name) else 0) for name in ROLES}


def find_seed_role(replicate: int) -> SeedRole | None:
    """Returns the one role that a seed run varies; None for an ordinary replicate."""
    number = replicate // MAX_REPLICATES
    return ROLES[number - 1] if number else None


def list_seed_runs(roles: Sequence[SeedRole], replicates: int) -> list[int]:
    """Returns the replicate numbers of the seed runs: for each role, one for each replicate after the first."""
    return [MAX_REPLICATES * (ROLES.index(role) + 1) + own for role in roles for own in range(1, replicates)]


def derive_seed(*parts: int | str) -> int:
    """Hashes any parts (seed, role, epoch, ...) to a seed of 63 bits."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
