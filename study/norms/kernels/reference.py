"""The reference implementation of switch layers, in plain torch. It also runs where there are no compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from study.norms.kernels.sync import combine_moments, count_ranks
from study.norms.mixing import Centre, sparsestmax
from study.norms.mixing import softmax as softmax_rule

# The axes that a member averages over, with (N, C) moments reshaped to (chunks, samples, groups, channels per group).
_AXES = {"ln": (2, 3), "bn": (1,), "gn": (3,)}


def normalize(
    x: Tensor,
    switch: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    running: tuple[Tensor, Tensor] | None,
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

    switch: for means and for variances, (K,) logits if `softmax` is true, else weights. affine: gamma and beta (C,).
    running: mean and variance (C,) that the bn member uses in evaluation; None to use those of the batch. The other
    arguments are those of `SwitchNorm`.

    With a switch (T, K), x holds the channels of T trials one after the other, C / T of each, and every trial is
    normalized by itself.

    Returns y and, if bn used the statistics of the batch, the mean and variance that running statistics move towards:
    (2, C), averages over chunks, detached. An empty x has no statistics, and the gradients of the parameters are 0.

    ValueError if x does not have a floating-point dtype.
    """
    if not x.is_floating_point():
        raise ValueError(f"input of dtype {x.dtype} is not allowed: a floating-point dtype")
    options = {"softmax": softmax, "pool": pool, "groups": groups, "chunks": chunks, "correction": correction,
               "eps": eps, "sync": sync}  # fmt: skip
    if switch[0].dim() == 2:
        return normalize_trials(normalize, x, switch, affine, running, **options)
    batch, channels = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    grid = (chunks, batch // chunks, groups, channels // groups)
    ranks = count_ranks() if sync else 1
    column = (batch, channels, *[1] * (x.dim() - 2))
    if not x.numel():
        if ranks > 1 and "bn" in pool:  # the others wait for this rank, and get an error unless their x is empty, too
            nothing = affine[0].new_zeros(1, 1, *grid[2:])
            combine_moments(nothing, nothing, count=0)
        return (x + sum(parameter.sum() for parameter in (*switch, *affine))).to(x.dtype), None
    weights = [softmax_rule(logits) if softmax else logits for logits in switch]

    # One pass over x; from here to the last step, all tensors have N x C elements or fewer.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(2, x.dim()))
    if running is not None and axes:
        mean, var, centered = _compute_moments_in_evaluation(wide, axes, weights, pool.index("bn"), running[0])
    else:
        mean, var, centered = _compute_moments(wide, axes)
    mean, var = mean.reshape(grid), var.reshape(grid)
    if correction:
        var = var * _bessel_factor(pixels)

    members = {"in": (mean, var)}
    for name in pool:
        if name == "bn" and running is not None:
            members[name] = running[0].view(grid[2:]), running[1].view(grid[2:])
        elif name != "in":
            # Mean of variances + variance of means: there is no difference of large numbers.
            center, spread, _ = _compute_moments(mean, _AXES[name])
            members[name] = center, var.mean(_AXES[name], keepdim=True) + spread
            if name == "bn" and ranks > 1:
                members[name] = combine_moments(*members[name], count=grid[1] * pixels)
            if correction and not axes:
                count = math.prod(grid[axis] for axis in _AXES[name]) * (ranks if name == "bn" else 1)
                members[name] = members[name][0], members[name][1] * _bessel_factor(count)
    mixed_mean = _weighted_sum(weights[0], [members[name][0] for name in pool])
    mixed_var = _weighted_sum(weights[1], [members[name][1] for name in pool])

    # Subtract the mean first, then scale, then shift: this is accurate even where |mean| >> std.
    gamma, beta = (parameter.view(grid[2:]) for parameter in affine)
    scale = gamma * (mixed_var + eps).rsqrt()
    shift = torch.addcmul(beta, mean - mixed_mean, scale)
    y = torch.addcmul(shift.reshape(column), centered, scale.expand(grid).reshape(column)).to(x.dtype)
    if running is not None or "bn" not in pool:
        return y, None
    center, spread = (statistic.detach().mean(0).reshape(channels) for statistic in members["bn"])
    # torch's convention: the variance that normalizes is biased, the running variance is unbiased.
    count = ranks * grid[1] * pixels
    if correction == 0:
        spread = spread * _bessel_factor(count)
    return y, torch.stack((center, spread))


def normalize_trials(
    normalize_one: Callable[..., tuple[Tensor, Tensor | None]],
    x: Tensor,
    switch: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    running: tuple[Tensor, Tensor] | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Calls `normalize_one` with the channels and the switch of each trial; returns what `normalize` does."""
    trials = len(switch[0])
    by_channel = [each.chunk(trials) for each in (*affine, *(running or ()))]
    results = [
        normalize_one(
            part, (switch[0][trial], switch[1][trial]), (by_channel[0][trial], by_channel[1][trial]),
            (by_channel[2][trial], by_channel[3][trial]) if running else None, **options,
        )
        for trial, part in enumerate(x.chunk(trials, dim=1))
    ]  # fmt: skip
    batches = [batch for _, batch in results if batch is not None]
    return torch.cat([y for y, _ in results], dim=1), torch.cat(batches, dim=1) if batches else None


def update_running_statistics(running_mean: Tensor, running_var: Tensor, batch: Tensor, momentum: float) -> None:
    """Moves running statistics (C,) towards those of a batch (2, C), in place."""
    for running, statistic in zip((running_mean, running_var), batch.to(running_mean.dtype), strict=True):
        running.lerp_(statistic, momentum)


def sparse_switch(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor, centre: Centre = "simplex") -> Tensor:
    """Returns weights (K,): `choice` if `fixed`, else `sparsestmax` of the logits."""
    return torch.where(fixed, choice, sparsestmax(logits, radius, centre))


def fix_choice(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor, centre: Centre = "simplex") -> None:
    """Fixes weights that are one-hot, and sets the logits of fixed weights to these weights. In place, no gradient."""
    choice.copy_(sparse_switch(logits, radius, fixed, choice, centre))
    fixed.logical_or_(choice.amax() >= 1.0)
    logits.copy_(torch.where(fixed, choice, logits))


def _bessel_factor(count: int) -> float:
    """Returns the unbiased variance of `count` values as a multiple of the biased one; 1 for a single value."""
    return count / (count - 1) if count > 1 else 1.0


def _compute_moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and biased variance over `axes`, which keep size 1, and x minus its mean."""
    if not axes:  # torch would reduce over all axes
        return x, torch.zeros_like(x), torch.zeros_like(x)
    # At least five times as fast on CPUs as torch.var_mean, and x minus its mean is needed anyway.
    mean = x.mean(axes, keepdim=True)
    centered = x - mean
    return mean, centered.square().mean(axes, keepdim=True), centered


def _compute_moments_in_evaluation(
    x: Tensor, axes: tuple[int, ...], weights: list[Tensor], bn: int, running_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `_compute_moments`, but finite moments if only bn has a weight.

    y then depends on no moment of x, and a value that is not finite must not spread, as 0 times its mean is NaN.
    """
    used = weights[0] + weights[1] != 0.0
    only_bn = used.sum() == used[bn]
    mean = x.mean(axes, keepdim=True)
    is_finite = mean - mean == 0.0  # faster than isfinite
    mean = torch.where(only_bn & ~is_finite, running_mean.to(mean.dtype).view(-1, *[1] * len(axes)), mean)
    centered = x - mean
    return mean, torch.where(only_bn, 0.0, centered.square().mean(axes, keepdim=True)), centered


def _weighted_sum(weights: Tensor, members: list[Tensor]) -> Tensor:
    """Returns the weighted sum of members, whose shapes broadcast against each other."""
    first, *others = weights.unbind()
    total = first * members[0]
    for weight, member in zip(others, members[1:], strict=True):
        total = torch.addcmul(total, weight, member)
    return total
