"""Builds the norm layers of a model from a norm name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from study.norms.layers import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from study.norms.names import effective_pool, parse_norm
from study.norms.protocol import share_logits
from study.norms.single_norms import GhostBatchNorm, build_group_norm
from study.norms.sparse import SparseSwitchNorm2d

_SWITCH_NORMS = {1: SwitchNorm1d, 2: SwitchNorm2d, 3: SwitchNorm3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True, kw_only=True)
class NormFactory:
    """Builds layers of one norm: `factory(num_features)`, as torchvision calls its `norm_layer`.

    pool: the pool of a switch norm, without bn at a statistics batch of one; the norm itself if it is a single norm.
    """

    name: str
    pool: tuple[str, ...]
    build: Callable[[int], nn.Module]

    def __call__(self, num_features: int) -> nn.Module:
        """Builds a layer for inputs (N, num_features, *spatial)."""
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
    """Builds a factory of the norm `name` (see `study.norms.names`) for one model with `dims` spatial dimensions.

    Single norms are torch's layers, which are identical to pools of one, except where torch has none: `bn` over chunks,
    at a statistics batch of one, or over ranks (torch's needs GPUs), and group norms over a single value. A gn has
    gcd(groups, num_features) groups. Random logits (`sn-random`, or `logit_init`) are drawn from `generator` layer by
    layer. `correction` applies to switch norms only; the other arguments are those of `SwitchNorm2d`.

    The layers of an `sn-shared` factory share one pair of logits, so each model needs its own factory. Layers of
    `sn-stage` share theirs once `share_switches` has been called with the stages.

    ValueError if the name is unknown, the pool is empty, the norm does not exist in `dims` dimensions, or `sync` is
    combined with chunks.
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
        build = partial(build_group_norm, spec.kind, groups, eps)
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
            build = _with_shared_logits(build)
    return NormFactory(name=name, pool=pool, build=build)


def _with_shared_logits(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Wraps `build` so that all of its layers share the logits of the first."""
    layers: list[nn.Module] = []

    def build_shared(num_features: int) -> nn.Module:
        layers.append(build(num_features))
        share_logits(layers[0], layers[-1])
        return layers[-1]

    return build_shared
