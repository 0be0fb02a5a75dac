"""Checks which norm layers a network really has: libraries may silently use BatchNorm instead of the given norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from study.models.geometry import get_role, is_norm


def count_norms(network: nn.Module) -> dict[str, dict[str, int]]:
    """The number of norm layers by role and class name."""
    counts: dict[str, Counter[str]] = {}
    for path, layer in network.named_modules():
        if is_norm(layer):
            counts.setdefault(get_role(path), Counter())[type(layer).__name__] += 1
    return {role: dict(kinds) for role, kinds in counts.items()}


def check_norms(network: nn.Module, kinds: Mapping[str, type[nn.Module] | None]) -> None:
    """Checks that all norm layers of a role have its class in `kinds`; None allows no norm layers.

    Raises `AssertionError` that names the first layer of another class.
    """
    for path, layer in network.named_modules():
        if is_norm(layer):
            role = get_role(path)
            kind = kinds.get(role)
            expected = kind.__name__ if kind else "no norm layer"
            assert type(layer) is kind, f"{path} ({role}): found {type(layer).__name__}, expected {expected}"
