"""The arithmetic of a switch layer in plain torch: the reference, and what runs where nothing was compiled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from study.norms.kernels.sync import count_ranks, join_moments
from study.norms.mixing import softmax as softmax_rule
from study.norms.mixing import sparsestmax

# What a member averages over, with (N, C) moments laid out as (chunks, samples, groups, channels of a group).
_AXES = {"ln": (2, 3), "bn": (1,), "gn": (3,)}


def normalize(
    x: Tensor,
    switch: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    stored: tuple[Tensor, Tensor] | None,
    *,
    softmax: bool,
    pool: tuple[str, ...],
    groups: int,
    chunks: int,
    correction: int,
    eps: float,
    sync: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Normalizes x (N, C, *spatial) by the mixed statistics of `pool`.

    switch: for means and for variances, (K,) logits if `softmax`, and weights if not. affine: gamma and beta (C,).
    stored: mean and variance (C,) for the bn member in place of the batch's. The rest as in `SwitchNorm`.

    Returns y, and if bn took them (2, C), the mean and variance of the batch averaged over chunks, detached: what
    running statistics move towards.
    """
    batch, channels = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    grid = (chunks, batch // chunks, groups, channels // groups)
    ranks = count_ranks() if sync else 1
    column = (batch, channels, *[1] * (x.dim() - 2))
    weights = [softmax_rule(logits) if softmax else logits for logits in switch]

    # One pass over x; from here to the last step, everything is N x C numbers or fewer.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, var, centered = _moments(wide, tuple(range(2, x.dim())))
    mean, var = mean.reshape(grid), var.reshape(grid)
    if correction and pixels > 1:
        var = var * (pixels / (pixels - 1))

    members = {"in": (mean, var)}
    for name in pool:
        if name == "bn" and stored is not None:
            members[name] = stored[0].view(grid[2:]), stored[1].view(grid[2:])
        elif name != "in":
            # Mean of variances + variance of means: nothing large is subtracted from anything large.
            center, spread, _ = _moments(mean, _AXES[name])
            members[name] = center, var.mean(_AXES[name], keepdim=True) + spread
            if name == "bn" and ranks > 1:
                members[name] = join_moments(*members[name], count=grid[1] * pixels)
    mixed_mean = _weigh(weights[0], [members[name][0] for name in pool])
    mixed_var = _weigh(weights[1], [members[name][1] for name in pool])

    # Centred first, then scaled, then shifted: accurate even where |mean| >> std.
    gamma, beta = (parameter.view(grid[2:]) for parameter in affine)
    scale = gamma * (mixed_var + eps).rsqrt()
    shift = torch.addcmul(beta, mean - mixed_mean, scale)
    y = torch.addcmul(shift.reshape(column), centered, scale.expand(grid).reshape(column)).to(x.dtype)
    if stored is not None or "bn" not in pool:
        return y, None
    center, spread = (statistic.detach().mean(0).reshape(channels) for statistic in members["bn"])
    # torch's convention: biased variances normalize, running ones are unbiased.
    count = ranks * grid[1] * pixels
    if correction == 0 and count > 1:
        spread = spread * (count / (count - 1))
    return y, torch.stack((center, spread))


def track(running_mean: Tensor, running_var: Tensor, batch: Tensor, momentum: float) -> None:
    """Moves running statistics (C,) towards those of a batch (2, C), in place."""
    for running, statistic in zip((running_mean, running_var), batch.to(running_mean.dtype), strict=True):
        running.lerp_(statistic, momentum)


def sparse_switch(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor) -> Tensor:
    """Weights (K,): `choice` where `fixed`, and `sparsestmax` of the logits before."""
    return torch.where(fixed, choice, sparsestmax(logits, radius))


def fix_choice(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor) -> None:
    """Fixes weights that are one-hot, and puts the logits of fixed ones back on them. In place, without gradients."""
    choice.copy_(sparse_switch(logits, radius, fixed, choice))
    fixed.logical_or_(choice.amax() >= 1.0)
    logits.copy_(torch.where(fixed, choice, logits))


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance over `axes`, kept with size 1, and x less its mean."""
    if not axes:  # which torch would take for all
        return x, torch.zeros_like(x), torch.zeros_like(x)
    # Faster on CPUs than torch.var_mean, five times and more, and x less its mean is needed anyway.
    mean = x.mean(axes, keepdim=True)
    centered = x - mean
    return mean, centered.square().mean(axes, keepdim=True), centered


def _weigh(weights: Tensor, members: list[Tensor]) -> Tensor:
    """The weighted sum of members, which broadcast against each other."""
    first, *others = weights.unbind()
    total = first * members[0]
    for weight, member in zip(others, members[1:], strict=True):
        total = torch.addcmul(total, weight, member)
    return total
