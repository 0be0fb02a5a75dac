"""Which layers of a network are norms that can be replaced, what else they do, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from study.norms.layers import SwitchNorm
from study.norms.single_norms import GhostBatchNorm

# Norms whose statistics and affine values never change: torchvision's, detectron2's and timm's. By name, because this
# package needs none of these libraries.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
_LIBRARIES = ("torchvision.", "detectron2.", "timm.")
# Classes of timm that compute what their base class in torch computes; those with Act then apply `drop` and `act`.
_TIMM = ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "GroupNorm", "GroupNorm1", "GroupNormAct",
         "GroupNorm1Act")  # fmt: skip
# Where the forwards of torch and of this package are defined, which only normalize.
_NATIVE = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm", "torch.nn.modules.normalization",
           "study.norms.layers", "study.norms.single_norms")  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DIMS = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3,
         nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}  # fmt: skip


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch norm (frozen ones too), a group norm, an instance norm or a switch norm."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm, SwitchNorm)) or is_frozen(module)


def is_frozen(module: nn.Module) -> bool:
    """Whether a layer is a batch norm that is never trained, such as torchvision's `FrozenBatchNorm2d`."""
    is_known = type(module).__name__ in _FROZEN and type(module).__module__.startswith(_LIBRARIES)
    return is_known and isinstance(getattr(module, "running_mean", None), Tensor)


def find_obstacle(module: nn.Module) -> str:
    """Why a norm does more than another one could do in its place; empty if it does not."""
    if any(map(is_lazy, module.parameters())):
        return "its number of channels is not known yet; run the network once"
    if type(module).forward.__module__ not in _NATIVE and not is_frozen(module) and not _is_timm(module):
        return "its class has a forward of its own"
    if "forward" in vars(module):
        return "its forward has been replaced"
    if type(module).train is not nn.Module.train:
        return "its class has a train of its own"
    if is_parametrized(module):
        return "it has parametrizations"
    if any(getattr(module, name, None) for name in _HOOKS):
        return "it has hooks"
    return ""


def list_extras(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """What a layer of timm applies to the normalized values: dropout and activation, if any, by name."""
    if not _is_timm(module):
        return []
    children = [(name, module._modules.get(name)) for name in ("drop", "act")]
    return [(name, child) for name, child in children if child is not None and type(child) is not nn.Identity]


def count_channels(norm: Any) -> int:
    """Number of channels of a norm."""
    sizes = (getattr(norm, name, None) for name in ("num_features", "num_channels"))
    return int(next(filter(None, sizes), None) or len(norm.running_mean))


def read_settings(norm: Any) -> dict[str, Any]:
    """The settings of a norm, as options of `build_norm`; `dims` only where the class allows one number."""
    names = {"eps": "eps", "momentum": "momentum"}
    if isinstance(norm, nn.GroupNorm):
        names["groups"] = "num_groups"
    if isinstance(norm, (SwitchNorm, GhostBatchNorm)):
        names |= {"chunks": "chunks", "sync": "sync"}
    if isinstance(norm, SwitchNorm):
        names |= {"groups": "groups", "correction": "correction"}
    settings = {option: getattr(norm, name) for option, name in names.items() if hasattr(norm, name)}
    if isinstance(norm, nn.SyncBatchNorm):
        settings["sync"] = True
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


def _is_timm(module: nn.Module) -> bool:
    return type(module).__name__ in _TIMM and type(module).__module__.startswith("timm.")
