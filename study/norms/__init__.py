"""Switchable Normalization, its sparse form, its controls, and the single norms they choose from.

The names below load on first use, so that `study.norms.names` stays usable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.norms.names import NORM_NAMES, effective_pool, parse_norm

if TYPE_CHECKING:
    from study.norms.factory import (
        average_statistics,
        build_norm,
        convert_norms,
        share_switches,
        switch_parameters,
        switch_weights,
    )
    from study.norms.layers import SparseSwitchNorm2d, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, set_radius
    from study.norms.mixing import sparsestmax

_MODULES = {
    "factory": (
        "average_statistics",
        "build_norm",
        "convert_norms",
        "share_switches",
        "switch_parameters",
        "switch_weights",
    ),
    "layers": ("SparseSwitchNorm2d", "SwitchNorm1d", "SwitchNorm2d", "SwitchNorm3d", "set_radius"),
    "mixing": ("sparsestmax",),
}

__all__ = [
    "NORM_NAMES",
    "SparseSwitchNorm2d",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "average_statistics",
    "build_norm",
    "convert_norms",
    "effective_pool",
    "parse_norm",
    "set_radius",
    "share_switches",
    "sparsestmax",
    "switch_parameters",
    "switch_weights",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
