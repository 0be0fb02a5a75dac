"""Which layers of a network are norms that can be replaced, what else they do, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from study.norms.layers import SwitchNorm
from study.norms.single_norms import GhostBatchNorm
from study.norms.sparse import SparseSwitchNorm2d

# Norms whose statistics and affine values never change: torchvision's, detectron2's and timm's. By name, because this
# package needs none of these libraries.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
_LIBRARIES = ("torchvision.", "detectron2.", "timm.")
# Classes of timm that compute what their base class in torch computes; those with Act then apply `drop` and `act`.
_TIMM = ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "GroupNorm", "GroupNorm1", "GroupNormAct",
         "GroupNorm1Act")  # fmt: skip
# Modules of torch and of this package whose classes only convolve or normalize.
_NATIVE = (*(f"torch.nn.modules.{name}" for name in ("batchnorm", "conv", "instancenorm", "normalization")),
           *(f"study.norms.{name}" for name in ("layers", "single_norms", "sparse")))  # fmt: skip
# What a class may define without computing something else.
_HARMLESS = ("__init__", "__repr__", "_check_input_dim", "extra_repr", "reset_parameters")
_STATE = {*nn.BatchNorm1d(1).state_dict(), *SparseSwitchNorm2d(1).state_dict()}
_DIMS = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3,
         nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}  # fmt: skip


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch norm (frozen ones too), a group norm, an instance norm or a switch norm."""
    kind: type = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        kind = getattr(nn, module.original_name, kind)
    return issubclass(kind, (_BatchNorm, _InstanceNorm, nn.GroupNorm, SwitchNorm)) or is_frozen(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer is a batch norm that is never trained, such as torchvision's `FrozenBatchNorm2d`."""
    return _is_known(type(module), _FROZEN) and isinstance(module._buffers.get("running_mean"), Tensor)


def find_obstacle(norm: nn.Module) -> str:
    """Why a norm does more than another one could do in its place; empty if it does not."""
    if isinstance(norm, LazyModuleMixin):
        return "its number of channels is not known yet; run the network once"
    if isinstance(norm, torch.jit.ScriptModule):
        return "it is compiled by TorchScript; compile the network after the conversion"
    known = _STATE | ({"drop", "act"} if _is_timm(norm) else set())
    own = [name for name in (*norm._parameters, *norm._buffers, *norm._modules) if name not in known]
    return find_change(norm) or (f"it has {own[0]}, which no other norm has" if own else "")


def find_change(module: nn.Module, allowed: str = "") -> str:
    """What a norm or convolution does besides what its class of torch, timm or this package does; empty if nothing.

    allowed: a method that its class may replace.
    """
    if is_parametrized(module):
        return "it has parametrizations"
    classes = [*takewhile(lambda kind: not _is_native(kind), type(module).__mro__)]
    base = type(module).__mro__[len(classes)]

    def find_method(names: Iterable[str]) -> str | None:
        methods = (name for name in names if callable(getattr(base, name, None)))
        return next((name for name in methods if name not in (*_HARMLESS, allowed)), None)

    if name := find_method(chain.from_iterable(map(vars, classes))):
        return f"its class has a {name} of its own"
    if name := find_method(vars(module)):
        return f"its {name} has been replaced"
    if any(value for name, value in vars(module).items() if name.endswith("_hooks")):
        return "it has hooks"
    return ""


def list_extras(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """What a layer of timm applies to the normalized values: dropout and activation, if any, by name."""
    if not _is_timm(module):
        return []
    children = [(name, module._modules.get(name)) for name in ("drop", "act")]
    return [(name, child) for name, child in children if child is not None and type(child) is not nn.Identity]


def find_single_norm(norm: nn.Module) -> str:
    """Name of the norm that a layer of torch is: `bn`, `in`, `ln` or `gn`; empty for other layers."""
    if isinstance(norm, nn.GroupNorm):
        return {1: "ln", norm.num_channels: "in"}.get(norm.num_groups, "gn")
    if isinstance(norm, _InstanceNorm) and norm.running_mean is None:
        return "in"
    return "bn" if isinstance(norm, _BatchNorm) else ""


def count_channels(norm: Any) -> int:
    """Number of channels of a norm."""
    sizes = (getattr(norm, name, None) for name in ("num_features", "num_channels"))
    return int(next(filter(None, sizes), None) or len(norm.running_mean))


def read_settings(norm: Any) -> dict[str, Any]:
    """The settings of a norm, as options of `build_norm`; `dims` only where the class allows one number."""
    names = {"eps": "eps", "momentum": "momentum"}
    if find_single_norm(norm) == "gn":
        names["groups"] = "num_groups"
    if isinstance(norm, (SwitchNorm, GhostBatchNorm)):
        names |= {"chunks": "chunks", "sync": "sync"}
    if isinstance(norm, SwitchNorm):
        names |= {"groups": "groups", "correction": "correction"}
    settings = {option: getattr(norm, name) for option, name in names.items() if hasattr(norm, name)}
    if isinstance(norm, nn.SyncBatchNorm):
        settings["sync"] = True
    if isinstance(norm, _BatchNorm) and not norm.track_running_stats and norm.running_mean is not None:
        settings["momentum"] = 0.0  # switched off after construction: statistics are used, but do not move
    dims = [max(norm.input_dims) - 2] if isinstance(norm, SwitchNorm) else []
    dims += [number for kind, number in _DIMS.items() if isinstance(norm, kind)]
    return {**settings, "dims": dims[0]} if dims else settings


def list_children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Lists (path, parent, name, child) of every module inside `model`, and once per place if it has several."""
    # Not named_children, which yields a child once even if its parent uses it twice.
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield f"{path}.{name}".removeprefix("."), parent, name, child


def find_hidden(model: nn.Module) -> dict[nn.Module, str]:
    """Finds modules that a plain attribute holds, too, by itself, in a list or as a bound method, and names it.

    What the network calls there is not replaced with the child.
    """
    hidden: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                for leaf in tree_leaves(value):
                    kept = leaf.__self__ if isinstance(leaf, MethodType) else leaf
                    if isinstance(kept, nn.Module):
                        hidden.setdefault(kept, f"{path}.{name}".removeprefix("."))
    return hidden


def _is_timm(module: nn.Module) -> bool:
    return any(_is_known(kind, _TIMM) for kind in type(module).__mro__)


def _is_native(kind: type) -> bool:
    return kind.__module__ in _NATIVE or _is_known(kind, (*_FROZEN, *_TIMM))


def _is_known(kind: type, names: tuple[str, ...]) -> bool:
    return kind.__name__ in names and kind.__module__.startswith(_LIBRARIES)
