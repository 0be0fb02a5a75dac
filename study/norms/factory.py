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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from study.norms.kernels.dispatch import normalize, track
from study.norms.layers import SparseSwitchNorm2d, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, SwitchWeights
from study.norms.names import effective_pool, parse_norm

_SWITCH_NORMS = {1: SwitchNorm1d, 2: SwitchNorm2d, 3: SwitchNorm3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, kw_only=True)
class NormFactory:
    """Builds the layers of one norm: `factory(num_features)`, as torchvision calls its `norm_layer`.

    pool: what a layer chooses from, after the rule for a statistics batch of one; of a single norm, itself.
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
    sync: bool = False,
    groups: int = 32,
    statistics_batch: int | None = None,
    logit_init: Literal["ones", "random"] = "ones",
    generator: torch.Generator | None = None,
    dims: int = 2,
) -> NormFactory:
    """A factory of the norm `name` (see `study.norms.names`) for one model with `dims` spatial dimensions.

    Single norms are torch's layers, which are identical to pools of one; only `bn` over chunks, over a statistics
    batch of one, and over ranks that may be CPUs, which torch does not have, are ours. A gn has gcd(groups,
    num_features) groups. Random logits, of `sn-random` or by `logit_init`, are drawn from `generator` layer by layer.
    `correction` is for switch norms only; the other arguments are those of `SwitchNorm2d`.

    The layers of an `sn-shared` factory share one pair of logits, so each model needs its own factory; those
    of `sn-stage` share theirs once `share_switches` has told the stages.

    ValueError if the name is unknown, nothing is left of the pool, the norm does not exist in `dims`, or `sync` comes
    with chunks.
    """
    spec = parse_norm(name)
    pool = effective_pool(spec, statistics_batch)
    if dims not in _SWITCH_NORMS or (spec.kind == "ssn" and dims != 2):
        raise ValueError(f"norm {name!r} in {dims} dimensions is not allowed: 1, 2 or 3, and 2 for ssn")
    if sync and chunks > 1:
        raise ValueError(f"chunks {chunks} is not allowed with sync: 1, statistics are over the whole batch")
    build: Callable[[int], nn.Module]
    if spec.kind == "bn" and chunks == 1 and not sync and statistics_batch != 1:
        build = partial(_BATCH_NORMS[dims], eps=eps, momentum=momentum)
    elif spec.kind == "bn" and statistics_batch != 1:
        build = partial(GhostBatchNorm, eps=eps, momentum=momentum, chunks=chunks, sync=sync)
    elif spec.kind in ("in", "ln", "gn"):
        build = partial(_build_group_norm, spec.kind, groups, eps)
    else:
        fixed = spec.kind == "bn" or spec.control in ("uniform", "random")
        if fixed:
            logit_init = "random" if spec.control == "random" else "ones"
        build = partial(
            SparseSwitchNorm2d if spec.kind == "ssn" else _SWITCH_NORMS[dims],
            eps=eps,
            momentum=momentum,
            pool=pool,
            correction=correction if spec.is_switch else 0,
            chunks=chunks,
            sync=sync,
            groups=groups,
            logit_init=logit_init,
            trainable=not fixed,
            tied=spec.control == "tied",
            generator=generator,
        )
        if spec.control == "shared":
            build = _sharing(build)
    return NormFactory(name=name, pool=pool, build=build)


def convert_norms(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """Replaces every normalization layer inside `model` by the norm `name`, in place, and returns `model`.

    Replaced are batch norms of any kind (frozen ones too), group and instance norms and switch layers, not
    LayerNorm. Affine values and running statistics stay where the new layer has them, and a layer used at
    several places stays one layer. The stages of `sn-stage` are the children of `model`.

    `options` as `build_norm`, with its errors.
    """
    factory = build_norm(name, **options)
    converted: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child is not None and is_norm(child):
                if child not in converted:
                    converted[child] = convert(child, factory)
                parent._modules[child_name] = converted[child]
    if parse_norm(name).control == "stage":
        share_switches(model, key=lambda path: path.split(".")[0])
    return model


def share_switches(model: nn.Module, key: Callable[[str], Hashable]) -> None:
    """Makes all switch layers of equal `key(module path)` share the logits of the first of them, in place.

    ValueError if layers that are to share differ in their pool.
    """
    origins: dict[Hashable, tuple[str, Any]] = {}
    for path, layer in _switch_layers(model):
        origin_path, origin = origins.setdefault(key(path), (path, layer))
        pools = origin.switch_weights().pool, layer.switch_weights().pool
        if pools[0] != pools[1]:
            raise ValueError(f"{origin_path!r} and {path!r} cannot share logits: their pools are {pools}")
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

    This is the SN authors' "batch average". `forward(model, batch)` runs a batch, by default `model(batch)`.
    Only layers with running statistics are in training mode meanwhile, so dropout is off; parameters, modes
    and momenta stay. A layer that runs several times a batch averages over all its runs; one that is `frozen` stays.

    ValueError if there are running statistics but no batch.
    """
    layers: list[Any] = [module for module in model.modules() if _tracks_statistics(module)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    runs: Counter[nn.Module] = Counter()

    def weigh_run(layer: Any, inputs: Any) -> None:
        if not inputs[0].numel():  # of a detector's head where there is nothing to see
            return
        if layer not in runs:  # NaN would survive a momentum of 1
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
        runs[layer] += 1
        layer.momentum = 1.0 / runs[layer]

    hooks = [layer.register_forward_pre_hook(weigh_run) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        with torch.compiler.set_stance("force_eager"):  # compiled code would not run the hooks
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta:
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not runs:
        raise ValueError("batches is empty: averaging statistics takes at least one")


class GhostBatchNorm(_BatchNorm):
    """`nn.BatchNorm` whose training statistics are over `chunks` consecutive chunks of the batch, or over all ranks.

    The arithmetic of a pool of bn, in a layer that chooses nothing.

    Raises:
        ValueError: in `forward`, if the batch is not divisible by `chunks`.
    """

    def __init__(self, num_features: int, *, eps: float, momentum: float, chunks: int, sync: bool = False) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.chunks, self.sync = chunks, sync

    def forward(self, input: Tensor) -> Tensor:
        """(G * B, C, *) of any number of dimensions."""
        if not self.training:
            return super().forward(input)
        if input.shape[0] % self.chunks:
            raise ValueError(f"a batch of {input.shape[0]} samples is not divisible into {self.chunks} chunks")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y, batch = _pool_of_one(self, input, "bn", groups=1, chunks=self.chunks, sync=self.sync)
        assert batch is not None
        track(self.running_mean, self.running_var, batch, self.momentum)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        """Any will do."""


class _GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that allows a single value per group, where y = bias, and is as fast channels last."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_contiguous() or torch.compiler.is_exporting():
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        # torch is several times slower here, and more in half precision.
        y, _ = _pool_of_one(self, input, "gn", groups=self.num_groups, chunks=1)
        return y


def _pool_of_one(
    layer: Any, x: Tensor, name: str, *, groups: int, chunks: int, sync: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A single norm by the switch core, for layers that choose nothing."""
    one = layer.weight.new_ones(1)
    return normalize(
        x,
        (one, one),
        (layer.weight, layer.bias),
        None,
        softmax=False,
        pool=(name,),
        groups=groups,
        chunks=chunks,
        correction=0,
        eps=layer.eps,
        sync=sync,
    )


def _build_group_norm(kind: str, groups: int, eps: float, num_features: int) -> nn.Module:
    # Not InstanceNorm2d, which refuses maps of one pixel.
    groups = {"in": num_features, "ln": 1, "gn": math.gcd(groups, num_features)}[kind]
    return _GroupNorm(groups, num_features, eps=eps)


def _sharing(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """`build` whose layers all share the logits of the first."""
    layers: list[nn.Module] = []

    def build_sharing(num_features: int) -> nn.Module:
        layers.append(build(num_features))
        _share(layers[0], layers[-1])
        return layers[-1]

    return build_sharing


def _share(origin: nn.Module, layer: nn.Module) -> None:
    layer.mean_weight, layer.var_weight = origin.mean_weight, origin.var_weight


def _switch_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if is_switch(module))


def is_switch(module: nn.Module) -> bool:
    """Whether `module` is a `SwitchLayer`; `isinstance` of a protocol takes as long as a small layer."""
    return callable(getattr(type(module), "switch_weights", None))


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalizes: what `convert_norms` replaces."""
    norms = (nn.GroupNorm, _InstanceNorm)
    return isinstance(module, norms) or is_switch(module) or hasattr(module, "running_mean")


def _tracks_statistics(module: nn.Module) -> bool:
    # torchvision's frozen batch norm has statistics but no momentum: nothing moves them.
    tracks = isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "momentum")
    return tracks and not getattr(module, "frozen", False)


@torch.no_grad()
def convert(old: Any, factory: NormFactory) -> nn.Module:
    """A new layer with the channels, affine values, running statistics, mode, device and dtype of `old`."""
    state = old.state_dict()
    kept = {name: state[name] for name in ("weight", "bias", "running_mean", "running_var") if name in state}
    sizes = (getattr(old, name, None) for name in ("num_features", "num_channels"))
    new = factory(next(filter(None, sizes), None) or len(kept["weight"])).train(old.training)
    for name, value in kept.items():
        target = new.to(value).state_dict()
        if name in target:
            target[name].copy_(value)
    return new
