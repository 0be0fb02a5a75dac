"""Triton kernels of switch layers for CUDA devices: `forward` and `backward`.

A row is one channel of one sample, r = n * C + c, with P pixels. Tensors of the size of x are read twice and written
once (backward: x and dy are read twice, dx is written once); all other tensors have at most a few values per row:

    forward   row statistics -> statistics of the members -> y
    backward  statistics of the members, row sums -> sums over the sets of each member -> dx

A set contains the rows that share a mean of a member: a sample (ln), a group of channels of one sample (gn), a channel
of a chunk of samples (bn). The statistics of all sets are in one buffer, see `_set_index`. The order of every sum is
fixed, so results are reproducible bit for bit. The host never waits for the device. Sizes are kernel arguments, so new
sizes need no compilation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Bits of the members of a pool, in the order of switch weights.
IN, LN, BN, GN = (tl.constexpr(1 << k) for k in range(4))

# Number of values of x that a program processes at a time; and tiles of (sets, rows per set).
_TILE = 2048
_LN_TILE, _BN_TILE, _GN_TILE = (tl.constexpr(tile) for tile in ((1, 512), (16, 32), (16, 32)))
_BLOCK = tl.constexpr(1024)

# With fewer programs than _MIN_PROGRAMS a large device is partly idle, so rows are split into up to _MAX_SPLITS parts.
_MIN_PROGRAMS = 1024
_MAX_SPLITS = 32

# Arguments that Triton must not specialize: it would compile again when one of these is 1 or divisible by 16.
_SIZES = ["N", "C", "P", "groups", "chunks", "correction", "splits", "span", "steps"]


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
    y = torch.empty_like(x)
    stats = x.new_empty((2, plan.N, plan.C), dtype=torch.promote_types(x.dtype, torch.float32))
    parts = stats if plan.splits == 1 else stats.new_empty((2, plan.splits, plan.N, plan.C))
    sets = stats.new_empty((2, plan.N + plan.N * groups + chunks * plan.C))
    coefficients = stats.new_empty((plan.splits, 2, plan.N, plan.C))
    batch = stats.new_empty((2, plan.C if members & BN.value and not uses_running else 0))
    with torch.cuda.device_of(x):
        _row_statistics[plan.grid](
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
        _normalize[plan.grid](
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
        _row_sums[plan.grid](dy, x, stats, parts, **plan.tiling)
        _set_sums[(_count_set_programs(plan, members | BN.value, groups), 3)](
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
        _input_gradients[(plan.grid[0] + 1, plan.splits)](
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


def _count_set_programs(plan: _LaunchPlan, members: int, groups: int) -> int:
    counts = {LN: (plan.N, _LN_TILE), BN: (plan.C, _BN_TILE), GN: (plan.N * groups, _GN_TILE)}
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
        programs = max(programs, triton.cdiv(plan.N * plan.C, _BLOCK.value))
    if programs:  # the sets of in are the rows themselves, so a pool of in needs no program
        _member_statistics[(programs, 4)](
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


# Weights of the members.


@triton.jit
def _pool_entries(MEMBERS: tl.constexpr):
    """Whether each of the four members is in the pool, and its index in the switches."""
    inside = (MEMBERS >> tl.arange(0, 4)) & 1
    return inside != 0, tl.cumsum(inside, 0) - inside


@triton.jit
def _load_weights(switch, MEMBERS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Loads a switch and returns the weights of all members (4,), 0 outside the pool."""
    inside, entry = _pool_entries(MEMBERS)
    if SOFTMAX:
        logits = tl.load(switch + entry, inside, other=float("-inf"))
        powers = tl.exp(logits - tl.max(logits, 0))
        weights = powers / tl.sum(powers, 0)
    else:
        weights = tl.load(switch + entry, inside, other=0.0)
    return weights


@triton.jit
def _is_member(MEMBER: tl.constexpr):
    return (1 << tl.arange(0, 4)) == MEMBER


@triton.jit
def _weight_of(weights, MEMBER: tl.constexpr):
    return tl.sum(tl.where(_is_member(MEMBER), weights, 0.0), 0)


# Indices and memory offsets.


@triton.jit
def _unpack_sizes(C, P, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr):
    """C and P. The dimension that is adjacent in memory is a multiple of ALIGN, so the compiler can vectorize loads."""
    if CHANNELS_LAST:
        C = C * ALIGN
    else:
        P = P * ALIGN
    return C, P


@triton.jit
def _row_indices(program, ROWS: tl.constexpr, INDEX64: tl.constexpr):
    if INDEX64:
        program = program.to(tl.int64)
    return program * ROWS + tl.arange(0, ROWS)


@triton.jit
def _set_indices(total, SETS: tl.constexpr):
    j = tl.program_id(0) * SETS + tl.arange(0, SETS)
    return j, j < total


@triton.jit
def _pixel_offsets(r, start, C, P, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets in x (rows, PIXELS) of the pixels from `start` on in each row."""
    first = r // C * C * P + r % C if CHANNELS_LAST else r * P
    p = start + tl.arange(0, PIXELS)
    return first[:, None] + p.to(r.dtype)[None, :] * (C if CHANNELS_LAST else 1)


@triton.jit
def _set_index(r, sizes, MEMBER: tl.constexpr):
    """Index of each row's set in the buffer: first the N sets of ln, then N * groups of gn, then chunks * C of bn."""
    N, C, groups, chunks = sizes
    if MEMBER == LN:
        set_index = r // C
    elif MEMBER == GN:
        set_index = N + r // (C // groups)
    else:
        set_index = N + N * groups + r // (N // chunks * C) * C + r % C
    return set_index


@triton.jit
def _mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS: tl.constexpr):
    """Means and variances of rows, and the mixed means and variances that normalize them."""
    N, C, groups, chunks = sizes
    set_count = N + N * groups + chunks * C
    mean = tl.load(stats + r, mask, other=0.0)
    var = tl.load(stats + N * C + r, mask, other=0.0)
    mixed_mean = _weight_of(weights[0], IN) * mean
    mixed_var = _weight_of(weights[1], IN) * var
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1:
            set_index = _set_index(r, sizes, 1 << k)
            mixed_mean += _weight_of(weights[0], 1 << k) * tl.load(sets + set_index, mask, other=0.0)
            mixed_var += _weight_of(weights[1], 1 << k) * tl.load(sets + set_count + set_index, mask, other=0.0)
    return mean, var, mixed_mean, mixed_var


# Moments: each lane of a tile is updated with one value at a time (Welford), and lanes are merged at the end (Chan).
# There is no difference of large numbers; if there is only one tile, this is the two-pass algorithm.


@triton.jit
def _update_lanes(mean, squares, value, mask, count):
    """Updates the moments of lanes with another value, the `count`-th, in lanes where the mask is true."""
    delta = tl.where(mask, value - mean, 0.0)
    mean += delta * (1.0 / count)
    return mean, squares + delta * (value - mean)


@triton.jit
def _merge_lanes(mean, squares, total, LANES: tl.constexpr):
    """Means of rows with `total` values, and sums of squared deviations from these means."""
    counts = ((total + (LANES - 1) - tl.arange(0, LANES)) // LANES).to(mean.dtype)[None, :]
    total = tl.maximum(tl.sum(counts, 1), 1.0)
    center = tl.sum(mean * counts, 1) / total
    # A second step, whose rounding error is relative to the spread and not to the mean.
    center += tl.sum((mean - center[:, None]) * counts, 1) / total
    delta = mean - center[:, None]
    return center, tl.sum(squares + delta * delta * counts, 1)


@triton.jit
def _load_row_moments(rows, r, mask):
    """Loads means and variances of rows, merged from those of their parts (2, splits, N * C)."""
    parts, plane, P, correction, splits, span = rows
    mean = tl.load(parts + r, mask, other=0.0)
    var = tl.load(parts + splits * plane + r, mask, other=0.0)
    for split in range(1, splits):
        other_mean = tl.load(parts + split * plane + r, mask, other=0.0)
        other_var = tl.load(parts + (splits + split) * plane + r, mask, other=0.0)
        count = (split * span).to(mean.dtype)
        other = tl.minimum(span, P - split * span).to(mean.dtype)
        delta = other_mean - mean
        mean += delta * (other / (count + other))
        var += other_var + delta * delta * (count * other / (count + other) / tl.maximum(P - correction, 1))
    return mean, var


@triton.jit
def _set_moments(rows, first, step, total, mask, SETS: tl.constexpr, SIZE: tl.constexpr):
    """Moments of sets of rows first, first + step, ...: mean of means; mean of variances + variance of means."""
    mean = tl.zeros((SETS, SIZE), rows[0].dtype.element_ty)
    squares = tl.zeros_like(mean)
    within = tl.zeros_like(mean)
    count = tl.zeros((1, 1), mean.dtype)
    for start in range(0, total, SIZE):
        i = start + tl.arange(0, SIZE)[None, :]
        inside = mask[:, None] & (i < total)
        row_mean, row_var = _load_row_moments(rows, first[:, None] + step * i, inside)
        count += 1.0
        mean, squares = _update_lanes(mean, squares, row_mean, inside, count)
        within += tl.where(inside, row_var, 0.0)
    center, spread = _merge_lanes(mean, squares, total, SIZE)
    return center, (tl.sum(within, 1) + spread) / total


# Forward.


@triton.jit(do_not_specialize=_SIZES)
def _row_statistics(
    x,
    parts,
    mean_switch,
    var_switch,
    running_mean,
    N,
    C,
    P,
    correction,
    steps,
    MEMBERS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    INDEX64: tl.constexpr,
):
    """Computes means and variances of parts of rows (2, splits, N, C)."""
    C, P = _unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    r = _row_indices(tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    total = end - begin
    if running_mean is not None:
        # If only bn has a weight and it uses running statistics, x is not read, and the center is the running mean.
        weights = _load_weights(mean_switch, MEMBERS, SOFTMAX), _load_weights(var_switch, MEMBERS, SOFTMAX)
        others = tl.where(_is_member(BN), 0.0, tl.abs(weights[0]) + tl.abs(weights[1]))
        needed = tl.sum(others, 0) != 0.0
        total = tl.where(needed, total, 0)

    mean = tl.zeros((ROWS, PIXELS), parts.dtype.element_ty)
    squares = tl.zeros_like(mean)
    count = tl.zeros((1, 1), mean.dtype)
    for start in range(begin, begin + total, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        value = tl.load(x + _pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS), inside, other=0.0).to(mean.dtype)
        count += 1.0
        mean, squares = _update_lanes(mean, squares, value, inside, count)
    center, spread = _merge_lanes(mean, squares, total, PIXELS)
    if running_mean is not None:
        center = tl.where(needed, center, tl.load(running_mean + r % C, mask, other=0.0))

    parts += tl.program_id(1) * N * C
    tl.store(parts + r, center, mask)
    tl.store(parts + tl.num_programs(1) * N * C + r, spread / tl.maximum(P - correction, 1), mask)


@triton.jit
def _merge_parts(rows, stats):
    r, mask = _set_indices(rows[1], _BLOCK)
    mean, var = _load_row_moments(rows, r, mask)
    tl.store(stats + r, mean, mask)
    tl.store(stats + rows[1] + r, var, mask)


@triton.jit
def _group_statistics(rows, sets, total, size, set_count, TILE: tl.constexpr):
    j, mask = _set_indices(total, TILE[0])
    if tl.program_id(0) * TILE[0] < total:
        mean, var = _set_moments(rows, j * size, 1, size, mask, TILE[0], TILE[1])
        tl.store(sets + j, mean, mask)
        tl.store(sets + set_count + j, var, mask)


@triton.jit
def _chunk_statistics(rows, sets, batch, running_mean, running_var, N, C, chunks, set_count, TILE: tl.constexpr):
    c, mask = _set_indices(C, TILE[0])
    samples = N // chunks
    batch_mean = tl.zeros((TILE[0],), sets.dtype.element_ty)
    batch_var = tl.zeros_like(batch_mean)
    for chunk in range(chunks):
        if running_mean is not None:
            mean = tl.load(running_mean + c, mask, other=0.0)
            var = tl.load(running_var + c, mask, other=0.0)
        else:
            mean, var = _set_moments(rows, chunk * samples * C + c, C, samples, mask, TILE[0], TILE[1])
        tl.store(sets + chunk * C + c, mean, mask)
        tl.store(sets + set_count + chunk * C + c, var, mask)
        batch_mean += mean
        batch_var += var
    if batch is not None and running_mean is None:
        # Makes the variance unbiased, unless it is derived from unbiased variances.
        _, _, P, correction, _, _ = rows
        count = samples.to(sets.dtype.element_ty) * P
        unbias = count / tl.maximum(count - (1 - correction), 1.0)
        tl.store(batch + c, batch_mean / chunks, mask)
        tl.store(batch + C + c, batch_var / chunks * unbias, mask)


@triton.jit(do_not_specialize=_SIZES)
def _member_statistics(
    parts,
    stats,
    sets,
    batch,
    running_mean,
    running_var,
    N,
    C,
    P,
    groups,
    chunks,
    correction,
    splits,
    span,
    MEMBERS: tl.constexpr,
):
    """Computes statistics of the sets (2, sets), of the batch (2, C), and of the rows (2, N, C) if these are split."""
    member = 1 << tl.program_id(1)
    set_count = N + N * groups + chunks * C
    rows = parts, N * C, P, correction, splits, span
    if member == IN:
        if splits > 1:
            _merge_parts(rows, stats)
    elif member == LN:
        if LN & MEMBERS:
            _group_statistics(rows, sets, N, C, set_count, _LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _group_statistics(rows, sets + N, N * groups, C // groups, set_count, _GN_TILE)
    else:
        if BN & MEMBERS:
            first = N + N * groups
            _chunk_statistics(rows, sets + first, batch, running_mean, running_var, N, C, chunks, set_count, _BN_TILE)


@triton.jit(do_not_specialize=_SIZES)
def _normalize(
    y,
    x,
    coefficients,
    stats,
    sets,
    mean_switch,
    var_switch,
    weight,
    bias,
    N,
    C,
    P,
    groups,
    chunks,
    steps,
    MEMBERS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    INDEX64: tl.constexpr,
):
    C, P = _unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    # In reverse order, because the rows that were read last may still be in the cache.
    r = _row_indices(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    weights = _load_weights(mean_switch, MEMBERS, SOFTMAX), _load_weights(var_switch, MEMBERS, SOFTMAX)
    mean, _, mixed_mean, mixed_var = _mix_statistics(stats, sets, r, mask, weights, (N, C, groups, chunks), MEMBERS)
    # Subtract the mean first, then scale, then shift: this is accurate even where |mean| >> std.
    scale = tl.load(weight + r % C, mask, other=0.0) / tl.sqrt(mixed_var + EPS)
    shift = tl.load(bias + r % C, mask, other=0.0) + (mean - mixed_mean) * scale
    # Through memory; otherwise each thread would compute these again for every row that contains its pixels.
    coefficients += tl.program_id(1) * 2 * N * C + r
    tl.store(coefficients, scale, mask)
    tl.store(coefficients + N * C, shift, mask)
    tl.debug_barrier()
    mean = tl.load(stats + r, mask, other=0.0)[:, None]
    scale = tl.load(coefficients, mask, other=0.0)[:, None]
    shift = tl.load(coefficients + N * C, mask, other=0.0)[:, None]

    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        tl.store(y + offsets, (value - mean) * scale + shift, inside)


# Backward.


@triton.jit(do_not_specialize=_SIZES)
def _row_sums(
    dy,
    x,
    stats,
    parts,
    N,
    C,
    P,
    steps,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    INDEX64: tl.constexpr,
):
    """Computes sums over parts of rows (2, splits, N, C): of dy, and of dy times x minus its mean."""
    C, P = _unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    r = _row_indices(tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    mean = tl.load(stats + r, mask, other=0.0)
    dy_sum = tl.zeros((ROWS, PIXELS), mean.dtype)
    dy_x_sum = tl.zeros_like(dy_sum)
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        grad = tl.load(dy + offsets, inside, other=0.0).to(mean.dtype)
        dy_sum += grad
        dy_x_sum += grad * (value - mean[:, None])
    parts += tl.program_id(1) * N * C
    tl.store(parts + r, tl.sum(dy_sum, 1), mask)
    tl.store(parts + tl.num_programs(1) * N * C + r, tl.sum(dy_x_sum, 1), mask)


@triton.jit
def _row_gradients(inputs, r, mask, MEMBERS: tl.constexpr, EPS: tl.constexpr):
    """For each row: gradients of mixed mean and variance, its part of those of gamma and beta; mean and variance."""
    parts, splits, stats, sets, weight, weights, sizes = inputs
    mean, var, mixed_mean, mixed_var = _mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS)
    plane = sizes[0] * sizes[1]
    dy_sum = tl.zeros_like(mean)
    dy_x_sum = tl.zeros_like(mean)
    for split in range(splits):
        dy_sum += tl.load(parts + split * plane + r, mask, other=0.0)
        dy_x_sum += tl.load(parts + (splits + split) * plane + r, mask, other=0.0)
    inverse = tl.where(mask, 1.0 / tl.sqrt(mixed_var + EPS), 0.0)
    scale = tl.load(weight + r % sizes[1], mask, other=0.0) * inverse
    dgamma = (dy_x_sum + dy_sum * (mean - mixed_mean)) * inverse
    return -scale * dy_sum, -0.5 * scale * inverse * dgamma, dgamma, dy_sum, mean, var


@triton.jit
def _sum_groups(inputs, set_sums, total, size, set_count, MEMBERS: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr):
    j, mask = _set_indices(total, TILE[0])
    dmean = tl.zeros((TILE[0], TILE[1]), set_sums.dtype.element_ty)
    dvar = tl.zeros_like(dmean)
    here = tl.where(tl.program_id(0) * TILE[0] < total, size, 0)  # another member may need more programs
    for start in range(0, here, TILE[1]):
        i = start + tl.arange(0, TILE[1])[None, :]
        inside = mask[:, None] & (i < size)
        row_dmean, row_dvar, _, _, _, _ = _row_gradients(inputs, j[:, None] * size + i, inside, MEMBERS, EPS)
        dmean += row_dmean
        dvar += row_dvar
    tl.store(set_sums + j, tl.sum(dmean, 1), mask)
    tl.store(set_sums + set_count + j, tl.sum(dvar, 1), mask)


@triton.jit
def _sum_chunks(
    inputs,
    row_grads,
    set_sums,
    in_sums,
    dweight,
    dbias,
    set_count,
    MEMBERS: tl.constexpr,
    EPS: tl.constexpr,
    TILE: tl.constexpr,
):
    N, C, _, chunks = inputs[-1]
    c, mask = _set_indices(C, TILE[0])
    samples = N // chunks
    dgamma = tl.zeros((TILE[0], TILE[1]), set_sums.dtype.element_ty)
    dbeta = tl.zeros_like(dgamma)
    in_mean = tl.zeros_like(dgamma)
    in_var = tl.zeros_like(dgamma)
    for chunk in range(chunks):
        dmean = tl.zeros_like(dgamma)
        dvar = tl.zeros_like(dgamma)
        for start in range(0, samples, TILE[1]):
            i = start + tl.arange(0, TILE[1])[None, :]
            inside = mask[:, None] & (i < samples)
            r = (chunk * samples + i) * C + c[:, None]
            row_dmean, row_dvar, row_dgamma, row_dbeta, mean, var = _row_gradients(inputs, r, inside, MEMBERS, EPS)
            tl.store(row_grads + r, row_dmean, inside)
            tl.store(row_grads + N * C + r, row_dvar, inside)
            dgamma += row_dgamma
            dbeta += row_dbeta
            dmean += row_dmean
            dvar += row_dvar
            in_mean += row_dmean * mean
            in_var += row_dvar * var
        tl.store(set_sums + chunk * C + c, tl.sum(dmean, 1), mask)
        tl.store(set_sums + set_count + chunk * C + c, tl.sum(dvar, 1), mask)
    tl.store(dweight + c, tl.sum(dgamma, 1), mask)
    tl.store(dbias + c, tl.sum(dbeta, 1), mask)
    tl.store(in_sums + c, tl.sum(in_mean, 1), mask)
    tl.store(in_sums + C + c, tl.sum(in_var, 1), mask)


@triton.jit(do_not_specialize=_SIZES)
def _set_sums(
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
    N,
    C,
    groups,
    chunks,
    splits,
    MEMBERS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    EPS: tl.constexpr,
):
    """Computes gradients of mixed means and variances: of rows (2, N, C), and their sums over all sets (2, sets).

    Also the gradients of gamma and beta (C,), and for each channel the parts (2, C) of the gradients of in's weights.
    """
    member = 2 << tl.program_id(1)
    set_count = N + N * groups + chunks * C
    weights = _load_weights(mean_switch, MEMBERS, SOFTMAX), _load_weights(var_switch, MEMBERS, SOFTMAX)
    inputs = parts, splits, stats, sets, weight, weights, (N, C, groups, chunks)
    if member == LN:
        if LN & MEMBERS:
            _sum_groups(inputs, set_sums, N, C, set_count, MEMBERS, EPS, _LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _sum_groups(inputs, set_sums + N, N * groups, C // groups, set_count, MEMBERS, EPS, _GN_TILE)
    else:
        chunk_sums = set_sums + N + N * groups
        _sum_chunks(inputs, row_grads, chunk_sums, in_sums, dweight, dbias, set_count, MEMBERS, EPS, _BN_TILE)


@triton.jit
def _dot(a, b, total):
    """The sum of a[i] * b[i] over i < total, or of a[i] if b is None."""
    products = tl.zeros((_BLOCK,), a.dtype.element_ty)
    for start in range(0, total, _BLOCK):
        i = start + tl.arange(0, _BLOCK)
        value = tl.load(a + i, i < total, other=0.0)
        if b is not None:
            value *= tl.load(b + i, i < total, other=0.0)
        products += value
    return tl.sum(products, 0)


@triton.jit
def _store_switch_gradient(dswitch, weights, other_weights, sets, set_sums, in_sums, sizes, MEMBERS, SOFTMAX):
    """Stores the gradient of a switch, from the statistics of the sets and the sums of gradients over the sets."""
    N, C, groups, chunks = sizes
    grads = tl.where(_is_member(IN), _dot(in_sums, None, C), 0.0)
    if LN & MEMBERS:
        grads = tl.where(_is_member(LN), _dot(sets, set_sums, N), grads)
    if GN & MEMBERS:
        grads = tl.where(_is_member(GN), _dot(sets + N, set_sums + N, N * groups), grads)
    if BN & MEMBERS:
        first = N + N * groups
        grads = tl.where(_is_member(BN), _dot(sets + first, set_sums + first, chunks * C), grads)
    # The statistics of a member whose weights are both 0 may not have been computed.
    grads = tl.where((weights == 0.0) & (other_weights == 0.0), 0.0, grads)
    if SOFTMAX:
        grads = weights * (grads - tl.sum(weights * grads, 0))
    inside, entry = _pool_entries(MEMBERS)
    tl.store(dswitch + entry, grads, inside)


@triton.jit(do_not_specialize=_SIZES)
def _input_gradients(
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
    N,
    C,
    P,
    groups,
    chunks,
    correction,
    steps,
    MEMBERS: tl.constexpr,
    SOFTMAX: tl.constexpr,
    USES_RUNNING: tl.constexpr,
    EPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    INDEX64: tl.constexpr,
):
    """Computes dx. The first program, which has no rows, computes the gradients of the switches."""
    C, P = _unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    sizes = N, C, groups, chunks
    set_count = N + N * groups + chunks * C
    weights = _load_weights(mean_switch, MEMBERS, SOFTMAX), _load_weights(var_switch, MEMBERS, SOFTMAX)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        _store_switch_gradient(dmean_switch, weights[0], weights[1], sets, set_sums, in_sums, sizes, MEMBERS, SOFTMAX)
        _store_switch_gradient(
            dvar_switch,
            weights[1],
            weights[0],
            sets + set_count,
            set_sums + set_count,
            in_sums + C,
            sizes,
            MEMBERS,
            SOFTMAX,
        )

    # In reverse order, as in `_normalize`.
    r = _row_indices(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    mean, _, _, mixed_var = _mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS)
    dmean = _weight_of(weights[0], IN) * tl.load(row_grads + r, mask, other=0.0)
    dvar = _weight_of(weights[1], IN) * tl.load(row_grads + N * C + r, mask, other=0.0)
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1 and not (USES_RUNNING and 1 << k == BN):
            count = C if 1 << k == LN else C // groups if 1 << k == GN else N // chunks
            set_index = _set_index(r, sizes, 1 << k)
            set_mean = tl.load(sets + set_index, mask, other=0.0)
            set_dmean = _weight_of(weights[0], 1 << k) * tl.load(set_sums + set_index, mask, other=0.0)
            set_dvar = _weight_of(weights[1], 1 << k) * tl.load(set_sums + set_count + set_index, mask, other=0.0)
            dmean += (set_dmean + 2.0 * set_dvar * (mean - set_mean)) / count
            dvar += set_dvar / count
    scale = tl.load(weight + r % C, mask, other=0.0) / tl.sqrt(mixed_var + EPS)
    shift = dmean / P
    slope = 2.0 * dvar / tl.maximum(P - correction, 1)
    # Through memory, as in `_normalize`.
    coefficients += tl.program_id(1) * 3 * N * C + r
    tl.store(coefficients, scale, mask)
    tl.store(coefficients + N * C, shift, mask)
    tl.store(coefficients + 2 * N * C, slope, mask)
    tl.debug_barrier()
    mean = tl.load(stats + r, mask, other=0.0)[:, None]
    scale = tl.load(coefficients, mask, other=0.0)[:, None]
    shift = tl.load(coefficients + N * C, mask, other=0.0)[:, None]
    slope = tl.load(coefficients + 2 * N * C, mask, other=0.0)[:, None]

    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        grad = tl.load(dy + offsets, inside, other=0.0).to(mean.dtype)
        tl.store(dx + offsets, grad * scale + shift + (value - mean) * slope, inside)
