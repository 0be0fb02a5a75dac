"""Layers of a single normalizer, without switch weights, where torch's own layers do not suffice."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from study.norms.kernels.dispatch import normalize, update_running_statistics


class GhostBatchNorm(_BatchNorm):
    """`nn.BatchNorm` whose training statistics are over `chunks` consecutive chunks of the batch, or over all ranks.

    It computes what a switch layer with a pool of bn computes.

    Raises:
        ValueError: in `forward`, if the batch is not divisible by `chunks`.
    """

    def __init__(self, num_features: int, *, eps: float, momentum: float, chunks: int, sync: bool = False) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        if momentum is None:
            raise ValueError("momentum None is not allowed over chunks or ranks: a number")
        self.chunks, self.sync = chunks, sync

    def forward(self, input: Tensor) -> Tensor:
        """Maps (G * B, C, *spatial), with any number of spatial dimensions, to the same shape."""
        if not self.training:
            return super().forward(input)
        if input.shape[0] % self.chunks:
            raise ValueError(f"a batch of {input.shape[0]} samples is not divisible into {self.chunks} chunks")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y, batch = _normalize_single(self, input, "bn", groups=1, chunks=self.chunks, sync=self.sync)
        if batch is not None and self.track_running_stats:  # None for an empty batch
            update_running_statistics(self.running_mean, self.running_var, batch, self.momentum)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions."""


def build_group_norm(kind: str, groups: int, eps: float, num_features: int) -> nn.Module:
    """Builds an `in`, `ln` or `gn` layer as a group norm; a gn has gcd(groups, num_features) groups."""
    # Not InstanceNorm2d, which rejects maps of one pixel.
    groups = {"in": num_features, "ln": 1, "gn": math.gcd(groups, num_features)}[kind]
    return _GroupNorm(groups, num_features, eps=eps)


class _GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that allows groups of one value (y = bias) or none, and is as fast in channels-last format.

    Records list the norm layers of a network by class name, this one included.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or (input.is_contiguous() and input.numel()):
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        # torch is several times slower in channels-last format, and even slower in half precision.
        y, _ = _normalize_single(self, input, "gn", groups=self.num_groups, chunks=1)
        return y


def _normalize_single(
    layer: Any, x: Tensor, name: str, *, groups: int, chunks: int, sync: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Normalizes by one normalizer: a pool of one, with weight 1. ValueError if x is not (N, C, *spatial)."""
    channels = layer.weight.numel()
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"{type(layer).__name__} input of shape {tuple(x.shape)} is not allowed: {channels} channels")
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
