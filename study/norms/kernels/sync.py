"""Batch statistics over all ranks of the default process group, with one small collective in each direction.

Every rank computes its own loss, and the gradients of parameters are averaged over ranks, as DistributedDataParallel
does. The result is that of one process with the whole batch and the mean of the losses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def count_ranks() -> int:
    """Returns the number of processes in the default process group; 1 if there is no group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def combine_moments(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns mean and variance over the values of all ranks, from those of this rank's `count` values.

    A collective: every rank must call it. RuntimeError on every rank if ranks differ in `count`; on a GPU the error
    appears later, because the host does not wait for the device.
    """
    combined: tuple[Tensor, Tensor] = _CombineMoments.apply(mean, var, count)
    return combined


class _CombineMoments(torch.autograd.Function):
    """The mean of variances + the variance of means. The backward pass sums the gradients of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        own = torch.stack((mean, var, torch.full_like(mean, count)))
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, own)
        means, variances, counts = torch.stack(gathered, dim=1)
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
