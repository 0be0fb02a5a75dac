"""The norm layers of several networks of one shape, computed as one layer (study/models/fused.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from study.norms.kernels.dispatch import normalize, update_running_statistics
from study.norms.layers import SwitchNorm, SwitchNorm2d
from study.norms.single_norms import GhostBatchNorm, _GroupNorm
from study.norms.sparse import SparseSwitchNorm2d

Share = Callable[[Sequence[Tensor]], Tensor]
"""Copies T tensors of shape (n, ...) into a new one, (T * n, ...), and makes each a view of its part."""


class FusedNorm(nn.Module):
    """Takes (N, T * C, *spatial), the inputs of T norm layers side by side, and normalizes each as its layer would.

    The layers are alike in everything but their parameters and buffers, which become views of this layer's. Values of
    one layer that are not finite do not reach the others.
    """

    def __init__(self, layers: Sequence[Any], share: Share) -> None:
        super().__init__()
        self.layers, first = tuple(layers), layers[0]

        def share_pair(one: str, other: str) -> tuple[Tensor, Tensor]:
            return share([getattr(layer, one) for layer in layers]), share([getattr(layer, other) for layer in layers])

        self.affine = share_pair("weight", "bias")
        has_statistics = getattr(first, "running_mean", None) is not None
        self.running = share_pair("running_mean", "running_var") if has_statistics else None
        self.counts: list[Any] = [layer.num_batches_tracked for layer in layers if type(layer) is nn.BatchNorm2d]
        self.logits: tuple[Tensor, Tensor] | None = None
        if type(first) is SwitchNorm2d:
            means, variances = share_pair("mean_weight", "var_weight")
            self.logits = means.view(len(layers), -1), variances.view(len(layers), -1)
        if isinstance(first, SwitchNorm):
            self.pool, self.groups, self.correction = first.pool, first.groups, first.correction
        else:  # a pool of one
            is_group_norm = isinstance(first, nn.GroupNorm)
            self.pool, self.correction = ("gn",) if is_group_norm else ("bn",), 0
            self.groups = first.num_groups if is_group_norm else 1

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.layers[0]
        training = first.training
        y, batch = normalize(
            x,
            self.logits or self._compute_weights(),
            self.affine,
            None if training else self.running,
            softmax=self.logits is not None,
            pool=self.pool,
            groups=self.groups if "gn" in self.pool else 1,
            chunks=getattr(first, "chunks", 1) if training else 1,
            correction=self.correction,
            eps=first.eps,
        )
        if batch is not None and self.running is not None:
            update_running_statistics(*self.running, batch, first.momentum)
            for count in self.counts:
                count.add_(1)
        return y

    def _compute_weights(self) -> tuple[Tensor, Tensor]:
        """The weights (T, K) of layers without logits, or whose weights are no softmax of them."""
        if not isinstance(self.layers[0], SwitchNorm):
            ones = self.affine[0].new_ones(len(self.layers), 1)
            return ones, ones
        means, variances = zip(*(layer._switch_inputs()[0] for layer in self.layers), strict=True)
        return torch.stack(means), torch.stack(variances)


FUSED_NORMS = (SwitchNorm2d, SparseSwitchNorm2d, nn.BatchNorm2d, GhostBatchNorm, _GroupNorm)
