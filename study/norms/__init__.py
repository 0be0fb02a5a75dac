"""Switchable Normalization, its sparse form, its controls, and the single norms they choose from.

What needs torch loads on first use, so that `study.norms.names` can be had without.
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
    from study.norms.hardened import harden
    from study.norms.kernels.dispatch import plain_norms
    from study.norms.layers import (
        SparseSwitchNorm2d,
        SwitchNorm1d,
        SwitchNorm2d,
        SwitchNorm3d,
        set_radius,
        unfreeze_switches,
    )
    from study.norms.mixing import sparsestmax

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
    "harden",
    "parse_norm",
    "plain_norms",
    "set_radius",
    "share_switches",
    "sparsestmax",
    "switch_parameters",
    "switch_weights",
    "unfreeze_switches",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("factory", "layers", "kernels.dispatch", "mixing", "hardened"):
            loaded = import_module(f"study.norms.{module}")
            if name in vars(loaded):
                return vars(loaded)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
