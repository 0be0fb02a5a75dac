"""Batch statistics over all ranks of the default process group: one small collective forward, one backward.

Every rank has a loss, and gradients of parameters are averaged over ranks, as DistributedDataParallel does: the
result is that of one process with the whole batch and the mean of the losses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def count_ranks() -> int:
    """Processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_moments(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of all ranks' values, from those of this rank's `count` values. Called on every rank.

    RuntimeError, on every rank and without waiting for a device, if ranks differ in `count`.
    """
    joined: tuple[Tensor, Tensor] = _JoinMoments.apply(mean, var, count)
    return joined


class _JoinMoments(torch.autograd.Function):
    """Mean of variances + variance of means. Its gradient sums what all ranks' losses say of the joined moments."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        own = torch.stack((mean, var, torch.full_like(mean, count)))
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts, dim=1)
        torch._assert_async((counts == count).all(), "sync: ranks differ in the size of their batch")
        center = means.mean(0)
        ctx.save_for_backward(mean - center)
        return center, variances.mean(0) + (means - center).square().mean(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcenter: Tensor, dspread: Tensor) -> tuple[Tensor, Tensor, None]:
        (offset,) = ctx.saved_tensors
        total = torch.stack((dcenter, dspread))
        dist.all_reduce(total)
        dmean, dvar = total / dist.get_world_size()
        return dmean + 2.0 * dvar * offset, dvar, None
