"""Replaces the normalization layers of a network by layers of another norm."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from study.norms.factory import build_norm
from study.norms.known_layers import (
    count_channels,
    find_hidden,
    find_obstacle,
    find_single_norm,
    is_frozen,
    is_norm,
    list_children,
    list_extras,
    read_settings,
)
from study.norms.layers import SwitchNorm
from study.norms.names import NormSpec, parse_norm
from study.norms.protocol import share_logits
from study.norms.single_norms import GhostBatchNorm
from study.norms.sparse import SparseSwitchNorm2d


def convert_norms(
    model: nn.Module,
    name: str,
    *,
    unfreeze: bool = False,
    report: Callable[[str], object] | None = None,
    **options: Any,
) -> nn.Module:
    """Replaces every normalization layer inside `model` by the norm `name`, in place, and returns `model`.

    Batch, group, instance and switch norms are replaced, also those of timm that hold an activation, which then follows
    the new layer in an `nn.Sequential`. LayerNorm and others whose statistics are not over channels or images are left.
    A layer that is the norm `name` already is left as it is, if no option is given: `convert_norms(model, "bn")` does
    not change a network of batch norms. A group norm of one group is an ln, one of C groups an in.

    A new layer has the settings of the one it replaces: eps, momentum, groups, spatial dimensions, device, dtype,
    training mode, its running statistics, and its very parameters, so that tied ones stay tied, and those of an
    optimizer stay in it. Logits are trained if the layer's other parameters are. A layer without affine parameters gets
    ones and zeros that are not trained; a batch norm that does not track statistics gets a layer that does not. A layer
    in several places stays one layer. The stages of `sn-stage` are the children of `model`.

    Args:
        model: the network; if it is a norm itself, the new layer is returned.
        name: see `study.norms.names`.
        unfreeze: whether frozen batch norms, and switch norms whose logits are not trained (`sn-uniform`), are
            replaced, too, by layers that are trained.
        report: called with a text that says how many layers of which classes were replaced, and what was left.
        options: those of `build_norm`, for all layers, instead of the settings of the replaced ones. `dims` is used for
            layers that allow any number of dimensions (group norms, `SyncBatchNorm`).

    Raises:
        ValueError: for a layer that does more than normalize (methods, parameters, buffers or children of its own,
            hooks, parametrizations), is frozen, is also held by a plain attribute such as a list, is inside a compiled
            layer or a `DistributedDataParallel`, or has settings that the new norm does not have, with its path; and
            the errors of `build_norm`. The model is then unchanged.
    """
    spec, new_layers = parse_norm(name), dict[nn.Module, nn.Module]()
    like = _find_tensor(model)
    is_wrapped = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
    places, hidden = [*list_children(model)], find_hidden(model)
    logits = Counter(
        logit
        for layer in model.modules()
        if isinstance(layer, SwitchNorm)
        for logit in (layer.mean_weight, layer.var_weight)
    )
    for path, parent, child in [("", None, model), *((path, parent, child) for path, parent, _, child in places)]:
        if not is_norm(child) or child in new_layers or _is_already(child, spec, options, unfreeze, logits):
            continue
        obstacle = find_obstacle(child)
        if child in hidden and not obstacle:
            obstacle = f"the attribute {hidden[child]} holds it, too, and would still call it; use an nn.ModuleList"
        if is_frozen(child) and not unfreeze:
            obstacle = "it is frozen, and its successor would be trained; unfreeze=True allows this"
        if type(parent).__name__ == "OptimizedModule":
            obstacle = "it is compiled by itself; compile the network after the conversion"
        if is_wrapped:
            obstacle = (
                "DistributedDataParallel would not average the gradients of its logits; wrap after the conversion"
            )
        try:
            if obstacle:
                raise ValueError(obstacle)
            new_layers[child] = convert_norm(child, name, like=like, **options)
        except ValueError as error:
            raise ValueError(f"{path or 'the model'}: {type(child).__name__} cannot be replaced: {error}") from None
    for _, parent, child_name, child in places:
        if child in new_layers:
            parent.register_module(child_name, new_layers[child])
    model = new_layers.get(model, model)
    if spec.control in ("stage", "shared"):
        first_layers: dict[str, nn.Module] = {}
        for path, layer in model.named_modules():
            if isinstance(layer, SwitchNorm):
                key = path.split(".")[0] if spec.control == "stage" else ""
                share_logits(first_layers.setdefault(key, layer), layer)
    if report is not None:
        report(_describe(model, new_layers))
    return model


@torch.no_grad()
def convert_norm(old: Any, name: str, *, like: Tensor | None = None, **options: Any) -> nn.Module:
    """Builds the layer that replaces `old`, as `convert_norms` says. like: for its device, if `old` has no tensor."""
    settings = read_settings(old)
    if isinstance(old, _InstanceNorm) and old.running_mean is not None:
        raise ValueError("it keeps running statistics of instances, which no other norm has")
    if settings.get("correction") and not parse_norm(name).is_switch and "correction" not in options:
        raise ValueError(
            f"its variances are unbiased (correction=1), those of {name} are not; correction=0 allows this"
        )
    dims = {"dims": settings["dims"]} if "dims" in settings else {}
    new: Any = build_norm(name, **settings | options | dims)(count_channels(old))
    like = _find_tensor(old, like)
    new = (new if like is None else new.to(like)).train(old.training)
    for part in ("weight", "bias"):
        value = getattr(old, part, None)
        if isinstance(value, nn.Parameter):
            setattr(new, part, value)
        else:
            getattr(new, part).requires_grad_(value is not None)
            if value is not None:  # a buffer of a frozen norm
                getattr(new, part).copy_(value)
    if hasattr(new, "mean_weight") and not new.weight.requires_grad and getattr(old, "weight", None) is not None:
        new.freeze()
    _copy_statistics(old, new)
    if extras := list_extras(old):
        new = nn.Sequential(OrderedDict([("norm", new), *extras]))
        new.training = old.training
    converted: nn.Module = new
    return converted


def _copy_statistics(old: Any, new: Any) -> None:
    """Copies running statistics to a layer that has them; removes them from it if `old` does not keep any."""
    if not isinstance(getattr(new, "running_mean", None), Tensor):
        return
    if isinstance(old, (_BatchNorm, SwitchNorm)) and _uses_batch(old) and old.running_mean is None:
        if isinstance(new, GhostBatchNorm):
            raise ValueError("it does not track statistics, which batch norms over chunks do")
        new.running_mean = new.running_var = None
        if isinstance(new, _BatchNorm):
            new.track_running_stats, new.num_batches_tracked = False, None
        return
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if isinstance(value := getattr(old, name, None), Tensor) and hasattr(new, name):
            setattr(new, name, value.clone())  # in their dtype, which may be wider than that of the parameters


def _uses_batch(norm: _BatchNorm | SwitchNorm) -> bool:
    """Whether a layer takes batch statistics: of a switch norm, one with bn in its pool."""
    return isinstance(norm, _BatchNorm) or "bn" in norm.pool


def _find_tensor(module: nn.Module, default: Tensor | None = None) -> Tensor | None:
    """The first floating-point tensor of a module, which has its device and dtype."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), default)


def _is_already(
    norm: nn.Module, spec: NormSpec, options: dict[str, Any], unfreeze: bool, logits: Counter[nn.Parameter]
) -> bool:
    """Whether a layer need not be replaced: it is of the norm asked for, and its settings are to stay.

    logits: how often each is used in the model. A layer that shares its logits is a control, not an sn.
    """
    if options:
        return False
    if is_frozen(norm):
        return spec.kind == "bn" and not unfreeze
    if isinstance(norm, SwitchNorm):
        kind = "ssn" if isinstance(norm, SparseSwitchNorm2d) else "sn"
        own = (norm.mean_weight, norm.var_weight)
        if any(logits[logit] > 1 for logit in own) or (unfreeze and not all(logit.requires_grad for logit in own)):
            return False
        return (kind, norm.pool, None) == (spec.kind, spec.pool, spec.control)
    return find_single_norm(norm) == spec.kind


def _describe(model: nn.Module, new_layers: dict[nn.Module, nn.Module]) -> str:
    """How many layers of which classes were replaced by which, and the norms that were left, with the reason."""

    def name(layer: nn.Module) -> str:
        parts = layer if isinstance(layer, nn.Sequential) else [layer]
        return ", ".join(type(part).__name__ for part in parts)

    replaced = Counter(f"{name(old)} -> {name(new)}" for old, new in new_layers.items())
    new = {part for layer in new_layers.values() for part in layer.modules()}
    left: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        named_norm = re.search("norm|abn", type(module).__name__, re.IGNORECASE)
        is_layer = next(module.parameters(recurse=False), None) is not None or next(module.children(), None) is None
        if module not in new and (is_norm(module) or (named_norm and is_layer)):
            left.setdefault(f"{type(module).__name__}: {_explain(module)}", []).append(path)
    lines = [f"{count} {what}" for what, count in replaced.items()] or ["no layer was replaced"]
    lines += [f"left: {len(paths)} {what}, the first at {paths[0]}" for what, paths in left.items()]
    return "\n".join(lines)


def _explain(module: nn.Module) -> str:
    """Why a layer was left."""
    if isinstance(module, SwitchNorm) and not (module.mean_weight.requires_grad and module.var_weight.requires_grad):
        return "is of this norm already, with logits that are not trained"
    if is_norm(module):
        return "is of this norm already"
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "normalizes every position by itself, over its features"
    return "is not a batch, group, instance or switch norm"
