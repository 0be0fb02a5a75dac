"""Launches the Triton kernels of switch layers on CUDA devices: `forward` and `backward`.

A row is one channel of one sample, r = n * C + c, with P pixels. Tensors of the size of x are read twice and written
once (backward: x and dy are read twice, dx is written once); all other tensors have at most a few values per row:

    forward   row statistics -> statistics of the members -> y
    backward  statistics of the members, row sums -> sums over the sets of each member -> dx

A set contains the rows that share a mean of a member: a sample (ln), a group of channels of one sample (gn), a channel
of a chunk of samples (bn). The statistics of all sets are in one buffer, see `index_of_set`. The order of every sum is
fixed, so results are reproducible bit for bit. The host never waits for the device. Sizes are kernel arguments, so new
sizes need no compilation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from study.norms.kernels.triton_backward import input_gradients_kernel, row_sums_kernel, set_sums_kernel
from study.norms.kernels.triton_forward import member_statistics_kernel, normalize_kernel, row_statistics_kernel
from study.norms.kernels.triton_shared import BLOCK, BN, BN_TILE, GN, GN_TILE, LN, LN_TILE

# Number of values of x that a program processes at a time.
_TILE = 2048

# With fewer programs than _MIN_PROGRAMS a large device is partly idle, so rows are split into up to _MAX_SPLITS parts.
_MIN_PROGRAMS = 1024
_MAX_SPLITS = 32


def forward(
    x: Tensor,
    mean_switch: Tensor,
    var_switch: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    members: int,
    groups: int,
    chunks: int,
    correction: int,
    eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes x by the mixed statistics of the pool's members.

    Statistics and parameters are in float32, or in float64 if x is in float64.

    Args:
        x: (N, C, *spatial), contiguous or channels last.
        mean_switch: (K,) logits if `softmax` is true, else weights, for the means of the members.
        var_switch: the same for variances.
        weight: gamma (C,).
        bias: beta (C,).
        running_mean: (C,), used by the bn member in evaluation; None to use the mean of the batch.
        running_var: the same for the variance.
        members: the pool as bits, 1 in, 2 ln, 4 bn, 8 gn.
        groups: number of groups of the gn member, a divisor of C.
        chunks: number of consecutive chunks of the batch over which bn takes its statistics, a divisor of N.
        correction: 1 for variances that are unbiased over pixels, else 0.
        eps: added to the variance.
        softmax: whether the switches are logits.

    Returns:
        y, like x. Statistics of the rows (2, N, C) for `backward`: a center, which is the mean unless no member needs
        it, and the variance. Statistics of the batch (2, C), which running statistics move towards: averages over
        chunks, with an unbiased variance; (2, 0) if bn did not use the statistics of the batch.
    """
    plan = _plan_launch(x)
    uses_running = running_mean is not None
    chunks = 1 if uses_running else chunks
    x = _to_layout(x, plan)
    mean_switch, var_switch, weight, bias, running_mean, running_var = _to_dense(
        members, mean_switch, var_switch, weight, bias, running_mean, running_var
    )
    y = torch.empty_like(x)
    stats = x.new_empty((2, plan.N, plan.C), dtype=torch.promote_types(x.dtype, torch.float32))
    parts = stats if plan.splits == 1 else stats.new_empty((2, plan.splits, plan.N, plan.C))
    sets = stats.new_empty((2, plan.N + plan.N * groups + chunks * plan.C))
    coefficients = stats.new_empty((plan.splits, 2, plan.N, plan.C))
    batch = stats.new_empty((2, plan.C if members & BN.value and not uses_running else 0))
    with torch.cuda.device_of(x):
        row_statistics_kernel[plan.grid](
            x,
            parts,
            mean_switch,
            var_switch,
            running_mean,
            correction=correction,
            MEMBERS=members,
            SOFTMAX=softmax,
            **plan.tiling,
        )
        _launch_member_statistics(
            plan, parts, stats, sets, batch, running_mean, running_var, members, groups, chunks, correction
        )
        normalize_kernel[plan.grid](
            y,
            x,
            coefficients,
            stats,
            sets,
            mean_switch,
            var_switch,
            weight,
            bias,
            groups=groups,
            chunks=chunks,
            MEMBERS=members,
            SOFTMAX=softmax,
            EPS=eps,
            **plan.tiling,
        )
    return y, stats, batch


def backward(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    mean_switch: Tensor,
    var_switch: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    members: int,
    groups: int,
    chunks: int,
    correction: int,
    eps: float,
    softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of `forward` from dy (N, C, *spatial), which may have any strides.

    Args:
        dy: the gradient of y.
        x: as in `forward`, like all following arguments except `stats`.
        stats: statistics of the rows, from `forward`.
        mean_switch: (K,).
        var_switch: (K,).
        weight: (C,).
        running_mean: (C,) or None.
        running_var: (C,) or None.
        members: the pool as bits.
        groups: number of groups of gn.
        chunks: number of chunks of bn.
        correction: 0 or 1.
        eps: added to the variance.
        softmax: whether the switches are logits.

    Returns:
        Gradients of x, weight, bias, mean_switch and var_switch. A member whose weights are both exactly 0 has a
        gradient of 0.
    """
    plan = _plan_launch(x)
    uses_running = running_mean is not None
    chunks = 1 if uses_running else chunks
    x, dy = _to_layout(x, plan), _to_layout(dy, plan)
    mean_switch, var_switch, weight, running_mean, running_var = _to_dense(
        members, mean_switch, var_switch, weight, running_mean, running_var
    )
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    dmean_switch, dvar_switch = torch.empty_like(mean_switch), torch.empty_like(var_switch)
    parts = stats.new_empty((2, plan.splits, plan.N, plan.C))
    sets = stats.new_empty((2, plan.N + plan.N * groups + chunks * plan.C))
    set_sums = torch.empty_like(sets)
    row_grads = torch.empty_like(stats)
    in_sums = stats.new_empty((2, plan.C))
    coefficients = stats.new_empty((plan.splits, 3, plan.N, plan.C))
    with torch.cuda.device_of(x):
        _launch_member_statistics(
            plan._replace(splits=1), stats, stats, sets, None, running_mean, running_var, members, groups, chunks, 0
        )
        row_sums_kernel[plan.grid](dy, x, stats, parts, **plan.tiling)
        set_sums_kernel[(_count_set_programs(plan, members | BN.value, groups), 3)](
            parts,
            stats,
            sets,
            row_grads,
            set_sums,
            in_sums,
            dweight,
            dbias,
            mean_switch,
            var_switch,
            weight,
            N=plan.N,
            C=plan.C,
            groups=groups,
            chunks=chunks,
            splits=plan.splits,
            MEMBERS=members,
            SOFTMAX=softmax,
            EPS=eps,
        )
        # One additional program computes the gradients of the switches.
        input_gradients_kernel[(plan.grid[0] + 1, plan.splits)](
            dx,
            dy,
            x,
            coefficients,
            stats,
            sets,
            row_grads,
            set_sums,
            in_sums,
            dmean_switch,
            dvar_switch,
            mean_switch,
            var_switch,
            weight,
            groups=groups,
            chunks=chunks,
            correction=correction,
            MEMBERS=members,
            SOFTMAX=softmax,
            USES_RUNNING=uses_running,
            EPS=eps,
            **plan.tiling,
        )
    return dx, dweight, dbias, dmean_switch, dvar_switch


class _LaunchPlan(NamedTuple):
    """Grid and arguments of the kernels that read x: `tiling` says which values each program processes."""

    N: int
    C: int
    P: int
    splits: int
    grid: tuple[int, int]
    channels_last: bool
    tiling: dict[str, int]


def _plan_launch(x: Tensor) -> _LaunchPlan:
    N, C = x.shape[:2]
    P = math.prod(x.shape[2:])
    # With one pixel both layouts are the same, and channels are adjacent in memory.
    channels_last = P == 1 or (not x.is_contiguous() and x.movedim(1, -1).is_contiguous())
    # Channels last: 64 adjacent channels at a time, because 64 values of 2 bytes fill a cache line.
    pixels = triton.next_power_of_2(min(P, _TILE // 64 if channels_last else _TILE // 2))
    rows = _TILE // pixels
    programs = triton.cdiv(N * C, rows)
    # A part of a row has at least 4 tiles, and all parts but the last have the same length.
    splits = min(triton.cdiv(P, 4 * pixels), triton.cdiv(_MIN_PROGRAMS, max(programs, 1)), _MAX_SPLITS)
    steps = triton.cdiv(triton.cdiv(P, pixels), splits)
    splits = triton.cdiv(P, steps * pixels)
    align = math.gcd(C if channels_last else P, 8)
    tiling = {
        "N": N,
        "C": C // align if channels_last else C,
        "P": P if channels_last else P // align,
        "steps": steps,
        "CHANNELS_LAST": channels_last,
        "ALIGN": align,
        "ROWS": rows,
        "PIXELS": pixels,
        "INDEX64": (N * C + rows) * (P + pixels) >= 2**31,
        # Without vectorized loads, more threads with fewer values each are faster.
        "num_warps": 4 if align > 1 else 8,
    }
    return _LaunchPlan(N, C, P, splits, (programs, splits), channels_last, tiling)


def _to_layout(x: Tensor, plan: _LaunchPlan) -> Tensor:
    """Returns a tensor in the memory layout of the plan, without a copy if it already has this layout."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if plan.channels_last else x.contiguous()


def _to_dense(members: int, *parameters: Any) -> Any:
    """Returns switches, parameters and running statistics as contiguous tensors. Checks that `members` have kernels."""
    assert 0 < members < 2 * GN.value, f"the kernels lack a member of {members}"
    return (each if each is None else each.contiguous() for each in parameters)


def _count_set_programs(plan: _LaunchPlan, members: int, groups: int) -> int:
    counts = {LN: (plan.N, LN_TILE), BN: (plan.C, BN_TILE), GN: (plan.N * groups, GN_TILE)}
    programs = [triton.cdiv(sets, tile.value[0]) for member, (sets, tile) in counts.items() if members & member.value]
    return max(programs, default=0)


def _launch_member_statistics(
    plan: _LaunchPlan,
    parts: Tensor,
    stats: Tensor,
    sets: Tensor,
    batch: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    members: int,
    groups: int,
    chunks: int,
    correction: int,
) -> None:
    programs = _count_set_programs(plan, members, groups)
    if plan.splits > 1:
        programs = max(programs, triton.cdiv(plan.N * plan.C, BLOCK.value))
    if programs:  # the sets of in are the rows themselves, so a pool of in needs no program
        member_statistics_kernel[(programs, 4)](
            parts,
            stats,
            sets,
            batch,
            running_mean,
            running_var,
            N=plan.N,
            C=plan.C,
            P=plan.P,
            groups=groups,
            chunks=chunks,
            correction=correction,
            splits=plan.splits,
            span=plan.tiling["steps"] * plan.tiling["PIXELS"],
            MEMBERS=members,
        )
