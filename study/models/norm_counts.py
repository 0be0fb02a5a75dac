"""Which norm layers a network really has. Libraries put BatchNorm where another norm was asked for, and say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from study.models.geometry import is_norm, role_of


def count_norms(network: nn.Module) -> dict[str, dict[str, int]]:
    """Norm layers by role and kind, the name of their class."""
    census: dict[str, Counter[str]] = {}
    for path, layer in network.named_modules():
        if is_norm(layer):
            census.setdefault(role_of(path), Counter())[type(layer).__name__] += 1
    return {role: dict(kinds) for role, kinds in census.items()}


def check_norms(network: nn.Module, kinds: Mapping[str, type[nn.Module] | None]) -> None:
    """Raises `AssertionError` that names the first norm layer of another class than its role's; None allows none."""
    for path, layer in network.named_modules():
        if is_norm(layer):
            role = role_of(path)
            kind = kinds.get(role)
            asked = kind.__name__ if kind else "no norm"
            assert type(layer) is kind, f"{path} ({role}): a {type(layer).__name__}, where {asked} was asked for"
