"""Switchable Normalization, its sparse variant, its controls, and the single norms that they choose from.

Modules that need torch are imported on first use, so that `study.norms.names` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.norms.names import NORM_NAMES, effective_pool, parse_norm

if TYPE_CHECKING:
    from study.norms.conversion import convert_norms
    from study.norms.factory import build_norm
    from study.norms.hardened import harden
    from study.norms.kernels.dispatch import plain_norms
    from study.norms.layers import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
    from study.norms.mixing import sparsestmax
    from study.norms.protocol import share_switches, switch_parameters, switch_weights
    from study.norms.running_statistics import average_statistics
    from study.norms.sparse import SparseSwitchNorm2d, set_radius, unfreeze_switches

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

_MODULES = (
    *("conversion", "factory", "hardened", "kernels.dispatch", "layers", "mixing"),
    *("protocol", "running_statistics", "sparse"),
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            contents = vars(import_module(f"study.norms.{module}"))
            if name in contents:
                return contents[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
