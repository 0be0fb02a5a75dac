"""Replaces the normalization layers of a network by layers of another norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from study.norms.factory import NormFactory, build_norm
from study.norms.names import parse_norm
from study.norms.protocol import is_switch_layer, share_switches


def convert_norms(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """Replaces every normalization layer inside `model` by the norm `name`, in place, and returns `model`.

    Batch norms of any kind (frozen ones too), group norms, instance norms and switch layers are replaced; LayerNorm is
    not. Affine values and running statistics are copied where the new layer has them, and a layer used in several
    places stays one layer. The stages of `sn-stage` are the children of `model`.

    `options` are those of `build_norm`, with its errors.
    """
    factory = build_norm(name, **options)
    converted: dict[nn.Module, nn.Module] = {}
    for parent, child_name, child in list_children(model):
        if is_convertible(child):
            if child not in converted:
                converted[child] = convert_norm(child, factory)
            parent.register_module(child_name, converted[child])
    if parse_norm(name).control == "stage":
        share_switches(model, key=lambda path: path.split(".")[0])
    return model


@torch.no_grad()
def convert_norm(old: Any, factory: NormFactory) -> nn.Module:
    """Builds a new layer with the channels, affine values, running statistics, mode, device and dtype of `old`."""
    state = old.state_dict()
    kept = {name: state[name] for name in ("weight", "bias", "running_mean", "running_var") if name in state}
    sizes = (getattr(old, name, None) for name in ("num_features", "num_channels"))
    new = factory(next(filter(None, sizes), None) or len(kept["weight"])).train(old.training)
    for name, value in kept.items():
        target = new.to(value).state_dict()
        if name in target:
            target[name].copy_(value)
    return new


def is_convertible(module: nn.Module) -> bool:
    """Whether `convert_norms` replaces `module`."""
    # Batch and instance norms have the attribute even if they keep no running statistics.
    return isinstance(module, nn.GroupNorm) or is_switch_layer(module) or hasattr(module, "running_mean")


def list_children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Lists (parent, name, child) for every module inside `model`, and once per place if it is used several times."""
    # Not named_children, which yields a child once even if its parent uses it twice.
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None
    ]
