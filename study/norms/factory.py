"""Norms in models: build layers from a name, put them into a network, share, read and recalibrate them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from study.norms.layers import (
    SparseSwitchNorm2d,
    SwitchLayer,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SwitchWeights,
)
from study.norms.names import effective_pool, parse_norm

_SWITCH_NORMS = {1: SwitchNorm1d, 2: SwitchNorm2d, 3: SwitchNorm3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, kw_only=True)
class NormFactory:
    """Builds the layers of one norm: `factory(num_features)`, as torchvision's `norm_layer` is called.

    pool: what a layer chooses from, after the rule for a statistics batch of one; a single norm is a pool of one.
    """

    name: str
    pool: tuple[str, ...]
    build: Callable[[int], nn.Module]

    def __call__(self, num_features: int) -> nn.Module:
        """A new layer for inputs (N, num_features, *spatial)."""
        return self.build(num_features)


def build_norm(
    name: str,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    correction: int = 0,
    chunks: int = 1,
    groups: int = 32,
    statistics_batch: int | None = None,
    logit_init: Literal["ones", "random"] = "ones",
    generator: torch.Generator | None = None,
    dims: int = 2,
) -> NormFactory:
    """A factory of the norm `name` (see `study.norms.names`) for one model with `dims` spatial dimensions.

    Single norms are torch's own layers, which are identical to pools of one and faster; `bn` over chunks or over
    a statistics batch of one, which torch lacks, is a pool of one. A gn has gcd(groups, num_features) groups.
    The logits of `sn-random` and of `logit_init="random"` come from `generator`, one draw a layer.

    The layers of an `sn-shared` factory share one pair of logits, hence one factory per model; those of
    `sn-stage` share theirs once `share_switches` has told the stages. `correction` is for switch norms only.

    ValueError if the name is unknown, nothing is left of the pool, or the norm does not exist in `dims`.
    """
    spec = parse_norm(name)
    pool = effective_pool(spec, statistics_batch)
    if dims not in _SWITCH_NORMS or (spec.kind == "ssn" and dims != 2):
        raise ValueError(f"norm {name!r} in {dims} dimensions is not allowed: 1, 2 or 3, and 2 for ssn")
    if spec.kind == "bn" and chunks == 1 and statistics_batch != 1:
        return NormFactory(
            name=name, pool=pool, build=partial(_BATCH_NORMS[dims], eps=eps, momentum=momentum)
        )
    if spec.kind in ("in", "ln", "gn"):
        return NormFactory(name=name, pool=pool, build=partial(_build_group_norm, spec.kind, groups, eps))
    fixed = spec.kind == "bn" or spec.control in ("uniform", "random")
    if fixed:
        logit_init = "random" if spec.control == "random" else "ones"
    build: Callable[[int], nn.Module] = partial(
        SparseSwitchNorm2d if spec.kind == "ssn" else _SWITCH_NORMS[dims],
        eps=eps,
        momentum=momentum,
        pool=pool,
        correction=correction if spec.is_switch else 0,
        chunks=chunks,
        groups=groups,
        logit_init=logit_init,
        trainable=not fixed,
        tied=spec.control == "tied",
        generator=generator,
    )
    return NormFactory(name=name, pool=pool, build=_SharedBuild(build) if spec.control == "shared" else build)


def convert_norms(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """Replaces every normalization layer inside `model` by the norm `name`, in place, and returns `model`.

    Replaced are batch norms of any kind (frozen ones too), group and instance norms and switch layers, not
    LayerNorm. Affine values and running statistics are kept where old and new layer have them; a layer used at
    several places stays one layer. The stages of `sn-stage` are the children of `model`. `options` as `build_norm`.
    """
    factory = build_norm(name, **options)
    converted: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is None or not _is_norm(child):
                continue
            if child not in converted:
                converted[child] = _convert(child, factory)
            parent._modules[child_name] = converted[child]
    if parse_norm(name).control == "stage":
        share_switches(model, key=lambda path: path.split(".")[0])
    return model


def share_switches(model: nn.Module, key: Callable[[str], Hashable]) -> None:
    """Makes all switch layers of equal `key(module path)` share the logits of the first of them, in place.

    ValueError if layers that are to share differ in their pool.
    """
    first: dict[Hashable, tuple[str, nn.Module]] = {}
    for path, layer in _switch_layers(model):
        origin_path, origin = first.setdefault(key(path), (path, layer))
        if origin.pool != layer.pool:
            raise ValueError(
                f"layers {origin_path!r} and {path!r} cannot share logits: their pools are {origin.pool} and {layer.pool}"
            )
        _share(origin, layer)


def switch_weights(model: nn.Module) -> dict[str, SwitchWeights]:
    """What every switch layer chooses now, by module path, in the order of the model."""
    return {path: layer.switch_weights() for path, layer in _switch_layers(model)}


def switch_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable logits of all switch layers, each once: a parameter group of their own."""
    logits = (logit for _, layer in _switch_layers(model) for logit in (layer.mean_weight, layer.var_weight))
    return list(dict.fromkeys(logit for logit in logits if logit.requires_grad))


@torch.no_grad()
def average_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> None:
    """Re-estimates running statistics as the plain average of the statistics of `batches`, in place.

    This is the SN authors' "batch average". Parameters stay, and so do modes and momenta; only layers with
    running statistics train meanwhile, so dropout is off. `forward(model, batch)` runs one batch, by default
    `model(batch)`. A layer that is called several times a batch averages over all its calls.

    ValueError if there are running statistics and no batch.
    """
    layers: list[Any] = [module for module in model.modules() if _tracks_statistics(module)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    calls: Counter[nn.Module] = Counter()

    def weigh_call(layer: Any, _: Any) -> None:
        calls[layer] += 1
        layer.momentum = 1.0 / calls[layer]
        if calls[layer] == 1:  # NaN would survive a momentum of 1
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)

    hooks = [layer.register_forward_pre_hook(weigh_call) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        with torch.compiler.set_stance("force_eager"):  # compiled code would not see the hooks
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta:
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not calls:
        raise ValueError("batches is empty: at least one batch is needed to average statistics")


class _GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that takes a single value per group as well, where it refuses: y = bias there."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _build_group_norm(kind: str, groups: int, eps: float, num_features: int) -> nn.Module:
    # As GroupNorm, in is defined on 1x1 maps, where torch's InstanceNorm raises.
    groups = {"in": num_features, "ln": 1, "gn": math.gcd(groups, num_features)}[kind]
    return _GroupNorm(groups, num_features, eps=eps)


class _SharedBuild:
    """Builds layers that all share the logits of the first."""

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        self.build = build
        self.first: nn.Module | None = None

    def __call__(self, num_features: int) -> nn.Module:
        layer = self.build(num_features)
        self.first = self.first or layer
        _share(self.first, layer)
        return layer


def _share(origin: nn.Module, layer: nn.Module) -> None:
    layer.mean_weight, layer.var_weight = origin.mean_weight, origin.var_weight


def _switch_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, SwitchLayer))


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.GroupNorm, _InstanceNorm, SwitchLayer)
    return isinstance(module, kinds) or hasattr(module, "running_mean")


def _tracks_statistics(module: nn.Module) -> bool:
    # Frozen batch norms have statistics and no momentum: nothing moves them.
    return isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "momentum")


@torch.no_grad()
def _convert(old: nn.Module, factory: NormFactory) -> nn.Module:
    """A new layer with the channels, affine values, running statistics, mode and place of `old`."""
    values = {name: getattr(old, name, None) for name in ("weight", "bias", "running_mean", "running_var")}
    held = next((value for value in values.values() if value is not None), None)
    channels = getattr(old, "num_channels", None) or getattr(old, "num_features", None)
    if channels is None:
        assert held is not None
        channels = len(held)
    new = factory(channels).train(old.training)
    if held is not None:
        new.to(held.device, held.dtype)
    for name, value in values.items():
        target = getattr(new, name, None)
        if target is not None and value is not None:
            target.copy_(value)
    return new
