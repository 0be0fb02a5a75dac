"""The arithmetic of a switch layer on CUDA devices: `forward` and `backward` as Triton kernels.

A row is one sample of one channel, r = n * C + c, of P pixels. What is as large as x is read twice and written once
(backward: x and dy); everything in between is one number a row, or fewer:

    forward   row statistics -> statistics of the members -> y
    backward  statistics of the members, row sums -> sums of each member's sets -> dx

A member's set is what its mean is over: a sample (ln), a group of channels of one (gn), a channel of a chunk of
samples (bn). The statistics of all sets lie in one buffer, see `_slot`. Sums are taken in a fixed order, so results
are the same bit for bit; the host never waits for the device; sizes are arguments, so that new ones compile nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Members of a pool, in the order of switch weights.
IN, LN, BN, GN = (tl.constexpr(1 << k) for k in range(4))

# Values of x that a program works on at a time, and (sets, values of each) where these are rows.
_TILE = 2048
_LN_TILE, _BN_TILE, _GN_TILE = (tl.constexpr(tile) for tile in ((1, 512), (16, 32), (16, 32)))
_BLOCK = tl.constexpr(1024)

# Fewer programs than this leave parts of a large device idle: then rows are split, in at most so many parts.
_MIN_PROGRAMS = 1024
_MAX_SPLITS = 32

# Triton would compile anew where one of these is 1 or divisible by 16.
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
    """Normalizes x by the mixed statistics of its members.

    Statistics and parameters are in float32, or in float64 if x is.

    Args:
        x: (N, C, *spatial), contiguous or channels last.
        mean_switch: (K,) weights of the members' means, or logits of them.
        var_switch: the same for variances.
        weight: gamma (C,).
        bias: beta (C,).
        running_mean: (C,), taken for the bn member in place of the batch's; None to take the batch's.
        running_var: the same for the variance.
        members: the pool as bits, 1 in, 2 ln, 4 bn, 8 gn.
        groups: of the gn member, a divisor of C.
        chunks: consecutive chunks of samples that the bn member takes its statistics over, a divisor of N.
        correction: 1 to take variances over pixels unbiased, else 0.
        eps: added to the variance.
        softmax: whether the switches are logits.

    Returns:
        y like x. Statistics of the rows (2, N, C) for `backward`: a centre, the mean unless the members need none,
        and the variance. Statistics of the batch (2, C) for the running ones, means over chunks, the variance
        unbiased; (2, 0) if the bn member took none.
    """
    plan = _plan(x)
    stored = running_mean is not None
    chunks = 1 if stored else chunks
    x = _lay_out(x, plan)
    y = torch.empty_like(x)
    stats = x.new_empty((2, plan.N, plan.C), dtype=torch.promote_types(x.dtype, torch.float32))
    parts = stats if plan.splits == 1 else stats.new_empty((2, plan.splits, plan.N, plan.C))
    sets = stats.new_empty((2, plan.N + plan.N * groups + chunks * plan.C))
    coefs = stats.new_empty((plan.splits, 2, plan.N, plan.C))
    batch = stats.new_empty((2, plan.C if members & BN.value and not stored else 0))
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
            coefs,
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
    """The gradients of `forward`, for dy (N, C, *spatial) of any strides.

    Args:
        dy: the gradient of y.
        x: as in `forward`, as are all that follow but `stats`.
        stats: what `forward` returned.
        mean_switch: (K,).
        var_switch: (K,).
        weight: (C,).
        running_mean: (C,) or None.
        running_var: (C,) or None.
        members: the pool as bits.
        groups: of gn.
        chunks: of bn.
        correction: 0 or 1.
        eps: added to the variance.
        softmax: whether the switches are logits.

    Returns:
        Gradients of x, weight, bias, mean_switch and var_switch. That of a member whose weights are both exactly 0
        is 0.
    """
    plan = _plan(x)
    stored = running_mean is not None
    chunks = 1 if stored else chunks
    x, dy = _lay_out(x, plan), _lay_out(dy, plan)
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    dmean_switch, dvar_switch = torch.empty_like(mean_switch), torch.empty_like(var_switch)
    parts = stats.new_empty((2, plan.splits, plan.N, plan.C))
    sets = stats.new_empty((2, plan.N + plan.N * groups + chunks * plan.C))
    set_sums = torch.empty_like(sets)
    row_grads = torch.empty_like(stats)
    own_sums = stats.new_empty((2, plan.C))
    coefs = stats.new_empty((plan.splits, 3, plan.N, plan.C))
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
            own_sums,
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
        # One program more, for the switches.
        _input_gradients[(plan.grid[0] + 1, plan.splits)](
            dx,
            dy,
            x,
            coefs,
            stats,
            sets,
            row_grads,
            set_sums,
            own_sums,
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
            STORED=stored,
            EPS=eps,
            **plan.tiling,
        )
    return dx, dweight, dbias, dmean_switch, dvar_switch


class _Plan(NamedTuple):
    """How the kernels that go over x do it: the grid, and the arguments that say which values a program has."""

    N: int
    C: int
    P: int
    splits: int
    grid: tuple[int, int]
    last: bool
    tiling: dict[str, int]


def _plan(x: Tensor) -> _Plan:
    N, C = x.shape[:2]
    P = math.prod(x.shape[2:])
    # With one pixel both layouts are the same, and it is channels that lie next to each other.
    last = P == 1 or (not x.is_contiguous() and x.movedim(1, -1).is_contiguous())
    # Channels last: 64 channels next to each other at a time, as 2 bytes each fill a line of the cache.
    pixels = triton.next_power_of_2(min(P, _TILE // 64 if last else _TILE // 2))
    rows = _TILE // pixels
    programs = triton.cdiv(N * C, rows)
    # A part of a row is at least 4 tiles, and all but the last are equally long.
    splits = min(triton.cdiv(P, 4 * pixels), triton.cdiv(_MIN_PROGRAMS, max(programs, 1)), _MAX_SPLITS)
    steps = triton.cdiv(triton.cdiv(P, pixels), splits)
    splits = triton.cdiv(P, steps * pixels)
    align = math.gcd(C if last else P, 8)
    tiling = {
        "N": N,
        "C": C // align if last else C,
        "P": P if last else P // align,
        "steps": steps,
        "LAST": last,
        "ALIGN": align,
        "ROWS": rows,
        "PIXELS": pixels,
        "WIDE": (N * C + rows) * (P + pixels) >= 2**31,
        # Where values can only be loaded one by one, fewer a thread.
        "num_warps": 4 if align > 1 else 8,
    }
    return _Plan(N, C, P, splits, (programs, splits), last, tiling)


def _lay_out(x: Tensor, plan: _Plan) -> Tensor:
    """What is like x in the layout of the plan, itself if it has it."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if plan.last else x.contiguous()


def _count_set_programs(plan: _Plan, members: int, groups: int) -> int:
    counts = {LN: (plan.N, _LN_TILE), BN: (plan.C, _BN_TILE), GN: (plan.N * groups, _GN_TILE)}
    programs = [triton.cdiv(sets, tile.value[0]) for member, (sets, tile) in counts.items() if members & member.value]
    return max(programs, default=0)


def _launch_member_statistics(
    plan: _Plan,
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
    if programs:  # a pool of in has no sets but the rows
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


# Weights.


@triton.jit
def _entries(MEMBERS: tl.constexpr):
    """Which members are in the pool, and their entries in the switches."""
    inside = (MEMBERS >> tl.arange(0, 4)) & 1
    return inside != 0, tl.cumsum(inside, 0) - inside


@triton.jit
def _weigh(switch, MEMBERS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Weights of all members (4,), 0 outside the pool."""
    inside, entry = _entries(MEMBERS)
    if SOFTMAX:
        logits = tl.load(switch + entry, inside, other=float("-inf"))
        powers = tl.exp(logits - tl.max(logits, 0))
        weights = powers / tl.sum(powers, 0)
    else:
        weights = tl.load(switch + entry, inside, other=0.0)
    return weights


@triton.jit
def _is(MEMBER: tl.constexpr):
    return (1 << tl.arange(0, 4)) == MEMBER


@triton.jit
def _pick(weights, MEMBER: tl.constexpr):
    return tl.sum(tl.where(_is(MEMBER), weights, 0.0), 0)


# Where things are.


@triton.jit
def _unpack_sizes(C, P, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """C and P; what runs fastest as a product, which tells the compiler how far loads can be vectorized."""
    if LAST:
        C = C * ALIGN
    else:
        P = P * ALIGN
    return C, P


@triton.jit
def _list_rows(program, ROWS: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        program = program.to(tl.int64)
    return program * ROWS + tl.arange(0, ROWS)


@triton.jit
def _list_sets(total, SETS: tl.constexpr):
    j = tl.program_id(0) * SETS + tl.arange(0, SETS)
    return j, j < total


@triton.jit
def _locate(r, start, C, P, LAST: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets (rows, PIXELS) in x, from pixel `start` of each row."""
    first = r // C * C * P + r % C if LAST else r * P
    p = start + tl.arange(0, PIXELS)
    return first[:, None] + p.to(r.dtype)[None, :] * (C if LAST else 1)


@triton.jit
def _slot(r, sizes, MEMBER: tl.constexpr):
    """Where among all sets that of each row is: first N of ln, then N * groups of gn, then chunks * C of bn."""
    N, C, groups, chunks = sizes
    if MEMBER == LN:
        slot = r // C
    elif MEMBER == GN:
        slot = N + r // (C // groups)
    else:
        slot = N + N * groups + r // (N // chunks * C) * C + r % C
    return slot


@triton.jit
def _mix(stats, sets, r, mask, weights, sizes, MEMBERS: tl.constexpr):
    """Means and variances of rows, and the mixed ones that they are normalized by."""
    N, C, groups, chunks = sizes
    slots = N + N * groups + chunks * C
    mean = tl.load(stats + r, mask, other=0.0)
    var = tl.load(stats + N * C + r, mask, other=0.0)
    mixed_mean = _pick(weights[0], IN) * mean
    mixed_var = _pick(weights[1], IN) * var
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1:
            slot = _slot(r, sizes, 1 << k)
            mixed_mean += _pick(weights[0], 1 << k) * tl.load(sets + slot, mask, other=0.0)
            mixed_var += _pick(weights[1], 1 << k) * tl.load(sets + slots + slot, mask, other=0.0)
    return mean, var, mixed_mean, mixed_var


# Moments: each lane of a tile takes in a value at a time (Welford), in the end all lanes are merged (Chan). Nothing
# large is subtracted from anything large, and where one tile is all there is, these are two passes over it.


@triton.jit
def _handle_finished(mean, squares, value, mask, count):
    """Lanes after another value, their `count`-th, where the mask says that they have one."""
    delta = tl.where(mask, value - mean, 0.0)
    mean += delta * (1.0 / count)
    return mean, squares + delta * (value - mean)


@triton.jit
def _merge(mean, squares, total, LANES: tl.constexpr):
    """Means of rows of `total` values, and their sums of squares around them."""
    counts = ((total + (LANES - 1) - tl.arange(0, LANES)) // LANES).to(mean.dtype)[None, :]
    total = tl.maximum(tl.sum(counts, 1), 1.0)
    center = tl.sum(mean * counts, 1) / total
    center += tl.sum((mean - center[:, None]) * counts, 1) / total  # rounded at the size of the spread this time
    delta = mean - center[:, None]
    return center, tl.sum(squares + delta * delta * counts, 1)


@triton.jit
def _load_rows(rows, r, mask):
    """Means and variances of rows, from those of their parts (2, splits, N * C)."""
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
def _summarize(rows, first, step, total, mask, SETS: tl.constexpr, SIZE: tl.constexpr):
    """Of sets of `total` rows first, first + step...: mean of means; mean of variances + variance of means."""
    mean = tl.zeros((SETS, SIZE), rows[0].dtype.element_ty)
    squares = tl.zeros_like(mean)
    within = tl.zeros_like(mean)
    count = tl.zeros((1, 1), mean.dtype)
    for start in range(0, total, SIZE):
        i = start + tl.arange(0, SIZE)[None, :]
        inside = mask[:, None] & (i < total)
        row_mean, row_var = _load_rows(rows, first[:, None] + step * i, inside)
        count += 1.0
        mean, squares = _handle_finished(mean, squares, row_mean, inside, count)
        within += tl.where(inside, row_var, 0.0)
    center, spread = _merge(mean, squares, total, SIZE)
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
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Means and variances of parts of rows (2, splits, N, C)."""
    C, P = _unpack_sizes(C, P, LAST, ALIGN)
    r = _list_rows(tl.program_id(0), ROWS, WIDE)
    mask = r < N * C
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    total = end - begin
    if running_mean is not None:
        # Nothing but bn has a weight and its statistics are stored: x need not be read, any centre will do.
        weights = _weigh(mean_switch, MEMBERS, SOFTMAX), _weigh(var_switch, MEMBERS, SOFTMAX)
        others = tl.where(_is(BN), 0.0, tl.abs(weights[0]) + tl.abs(weights[1]))
        needed = tl.sum(others, 0) != 0.0
        total = tl.where(needed, total, 0)

    mean = tl.zeros((ROWS, PIXELS), parts.dtype.element_ty)
    squares = tl.zeros_like(mean)
    count = tl.zeros((1, 1), mean.dtype)
    for start in range(begin, begin + total, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        value = tl.load(x + _locate(r, start, C, P, LAST, PIXELS), inside, other=0.0).to(mean.dtype)
        count += 1.0
        mean, squares = _handle_finished(mean, squares, value, inside, count)
    center, spread = _merge(mean, squares, total, PIXELS)
    if running_mean is not None:
        center = tl.where(needed, center, tl.load(running_mean + r % C, mask, other=0.0))

    parts += tl.program_id(1) * N * C
    tl.store(parts + r, center, mask)
    tl.store(parts + tl.num_programs(1) * N * C + r, spread / tl.maximum(P - correction, 1), mask)


@triton.jit
def _join_parts(rows, stats):
    r, mask = _list_sets(rows[1], _BLOCK)
    mean, var = _load_rows(rows, r, mask)
    tl.store(stats + r, mean, mask)
    tl.store(stats + rows[1] + r, var, mask)


@triton.jit
def _summarize_groups(rows, sets, total, size, slots, TILE: tl.constexpr):
    j, mask = _list_sets(total, TILE[0])
    if tl.program_id(0) * TILE[0] < total:
        mean, var = _summarize(rows, j * size, 1, size, mask, TILE[0], TILE[1])
        tl.store(sets + j, mean, mask)
        tl.store(sets + slots + j, var, mask)


@triton.jit
def _summarize_chunks(rows, sets, batch, running_mean, running_var, N, C, chunks, slots, TILE: tl.constexpr):
    c, mask = _list_sets(C, TILE[0])
    samples = N // chunks
    batch_mean = tl.zeros((TILE[0],), sets.dtype.element_ty)
    batch_var = tl.zeros_like(batch_mean)
    for chunk in range(chunks):
        if running_mean is not None:
            mean = tl.load(running_mean + c, mask, other=0.0)
            var = tl.load(running_var + c, mask, other=0.0)
        else:
            mean, var = _summarize(rows, chunk * samples * C + c, C, samples, mask, TILE[0], TILE[1])
        tl.store(sets + chunk * C + c, mean, mask)
        tl.store(sets + slots + chunk * C + c, var, mask)
        batch_mean += mean
        batch_var += var
    if batch is not None and running_mean is None:
        # Unbiased, unless it comes from variances that are.
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
    """Statistics of the rows (2, N, C) if these are in parts, of the sets (2, sets), and of the batch (2, C)."""
    member = 1 << tl.program_id(1)
    slots = N + N * groups + chunks * C
    rows = parts, N * C, P, correction, splits, span
    if member == IN:
        if splits > 1:
            _join_parts(rows, stats)
    elif member == LN:
        if LN & MEMBERS:
            _summarize_groups(rows, sets, N, C, slots, _LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _summarize_groups(rows, sets + N, N * groups, C // groups, slots, _GN_TILE)
    else:
        if BN & MEMBERS:
            first = N + N * groups
            _summarize_chunks(rows, sets + first, batch, running_mean, running_var, N, C, chunks, slots, _BN_TILE)


@triton.jit(do_not_specialize=_SIZES)
def _normalize(
    y,
    x,
    coefs,
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
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    C, P = _unpack_sizes(C, P, LAST, ALIGN)
    # Backwards: what was read last may still be in the cache.
    r = _list_rows(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, WIDE)
    mask = r < N * C
    weights = _weigh(mean_switch, MEMBERS, SOFTMAX), _weigh(var_switch, MEMBERS, SOFTMAX)
    mean, _, mixed_mean, mixed_var = _mix(stats, sets, r, mask, weights, (N, C, groups, chunks), MEMBERS)
    # Centred first, then scaled, then shifted: accurate even where |mean| >> std.
    scale = tl.load(weight + r % C, mask, other=0.0) / tl.sqrt(mixed_var + EPS)
    shift = tl.load(bias + r % C, mask, other=0.0) + (mean - mixed_mean) * scale
    # By way of memory, or else each thread would compute these for all rows that it has pixels of.
    coefs += tl.program_id(1) * 2 * N * C + r
    tl.store(coefs, scale, mask)
    tl.store(coefs + N * C, shift, mask)
    tl.debug_barrier()
    mean = tl.load(stats + r, mask, other=0.0)[:, None]
    scale = tl.load(coefs, mask, other=0.0)[:, None]
    shift = tl.load(coefs + N * C, mask, other=0.0)[:, None]

    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _locate(r, start, C, P, LAST, PIXELS)
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
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums over parts of rows (2, splits, N, C), of dy and of dy times the centred x."""
    C, P = _unpack_sizes(C, P, LAST, ALIGN)
    r = _list_rows(tl.program_id(0), ROWS, WIDE)
    mask = r < N * C
    mean = tl.load(stats + r, mask, other=0.0)
    plain = tl.zeros((ROWS, PIXELS), mean.dtype)
    product = tl.zeros_like(plain)
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _locate(r, start, C, P, LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        grad = tl.load(dy + offsets, inside, other=0.0).to(mean.dtype)
        plain += grad
        product += grad * (value - mean[:, None])
    parts += tl.program_id(1) * N * C
    tl.store(parts + r, tl.sum(plain, 1), mask)
    tl.store(parts + tl.num_programs(1) * N * C + r, tl.sum(product, 1), mask)


@triton.jit
def _differentiate_rows(problem, r, mask, MEMBERS: tl.constexpr, EPS: tl.constexpr):
    """Of rows: gradients of mixed mean and variance, shares in those of gamma and beta; mean and variance."""
    parts, splits, stats, sets, weight, weights, sizes = problem
    mean, var, mixed_mean, mixed_var = _mix(stats, sets, r, mask, weights, sizes, MEMBERS)
    plane = sizes[0] * sizes[1]
    plain = tl.zeros_like(mean)
    product = tl.zeros_like(mean)
    for split in range(splits):
        plain += tl.load(parts + split * plane + r, mask, other=0.0)
        product += tl.load(parts + (splits + split) * plane + r, mask, other=0.0)
    inverse = tl.where(mask, 1.0 / tl.sqrt(mixed_var + EPS), 0.0)
    scale = tl.load(weight + r % sizes[1], mask, other=0.0) * inverse
    dgamma = (product + plain * (mean - mixed_mean)) * inverse
    return -scale * plain, -0.5 * scale * inverse * dgamma, dgamma, plain, mean, var


@triton.jit
def _sum_groups(problem, set_sums, total, size, slots, MEMBERS: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr):
    j, mask = _list_sets(total, TILE[0])
    dmean = tl.zeros((TILE[0], TILE[1]), set_sums.dtype.element_ty)
    dvar = tl.zeros_like(dmean)
    here = tl.where(tl.program_id(0) * TILE[0] < total, size, 0)  # another role may take more programs
    for start in range(0, here, TILE[1]):
        i = start + tl.arange(0, TILE[1])[None, :]
        inside = mask[:, None] & (i < size)
        row_dmean, row_dvar, _, _, _, _ = _differentiate_rows(problem, j[:, None] * size + i, inside, MEMBERS, EPS)
        dmean += row_dmean
        dvar += row_dvar
    tl.store(set_sums + j, tl.sum(dmean, 1), mask)
    tl.store(set_sums + slots + j, tl.sum(dvar, 1), mask)


@triton.jit
def _sum_chunks(
    problem,
    row_grads,
    set_sums,
    own_sums,
    dweight,
    dbias,
    slots,
    MEMBERS: tl.constexpr,
    EPS: tl.constexpr,
    TILE: tl.constexpr,
):
    N, C, _, chunks = problem[-1]
    c, mask = _list_sets(C, TILE[0])
    samples = N // chunks
    dgamma = tl.zeros((TILE[0], TILE[1]), set_sums.dtype.element_ty)
    dbeta = tl.zeros_like(dgamma)
    own_mean = tl.zeros_like(dgamma)
    own_var = tl.zeros_like(dgamma)
    for chunk in range(chunks):
        dmean = tl.zeros_like(dgamma)
        dvar = tl.zeros_like(dgamma)
        for start in range(0, samples, TILE[1]):
            i = start + tl.arange(0, TILE[1])[None, :]
            inside = mask[:, None] & (i < samples)
            r = (chunk * samples + i) * C + c[:, None]
            row_dmean, row_dvar, row_dgamma, row_dbeta, mean, var = _differentiate_rows(
                problem, r, inside, MEMBERS, EPS
            )
            tl.store(row_grads + r, row_dmean, inside)
            tl.store(row_grads + N * C + r, row_dvar, inside)
            dgamma += row_dgamma
            dbeta += row_dbeta
            dmean += row_dmean
            dvar += row_dvar
            own_mean += row_dmean * mean
            own_var += row_dvar * var
        tl.store(set_sums + chunk * C + c, tl.sum(dmean, 1), mask)
        tl.store(set_sums + slots + chunk * C + c, tl.sum(dvar, 1), mask)
    tl.store(dweight + c, tl.sum(dgamma, 1), mask)
    tl.store(dbias + c, tl.sum(dbeta, 1), mask)
    tl.store(own_sums + c, tl.sum(own_mean, 1), mask)
    tl.store(own_sums + C + c, tl.sum(own_var, 1), mask)


@triton.jit(do_not_specialize=_SIZES)
def _set_sums(
    parts,
    stats,
    sets,
    row_grads,
    set_sums,
    own_sums,
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
    """Gradients of mixed means and variances: of rows (2, N, C), and their sums over the sets of members (2, sets).

    By channel besides: gradients of gamma and beta, and shares (2, C) in those of the weights of in.
    """
    member = 2 << tl.program_id(1)
    slots = N + N * groups + chunks * C
    weights = _weigh(mean_switch, MEMBERS, SOFTMAX), _weigh(var_switch, MEMBERS, SOFTMAX)
    problem = parts, splits, stats, sets, weight, weights, (N, C, groups, chunks)
    if member == LN:
        if LN & MEMBERS:
            _sum_groups(problem, set_sums, N, C, slots, MEMBERS, EPS, _LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _sum_groups(problem, set_sums + N, N * groups, C // groups, slots, MEMBERS, EPS, _GN_TILE)
    else:
        chunk_sums = set_sums + N + N * groups
        _sum_chunks(problem, row_grads, chunk_sums, own_sums, dweight, dbias, slots, MEMBERS, EPS, _BN_TILE)


@triton.jit
def _dot(a, b, total):
    """The sum of a[i] * b[i], i < total; of a[i] if b is None."""
    products = tl.zeros((_BLOCK,), a.dtype.element_ty)
    for start in range(0, total, _BLOCK):
        i = start + tl.arange(0, _BLOCK)
        value = tl.load(a + i, i < total, other=0.0)
        if b is not None:
            value *= tl.load(b + i, i < total, other=0.0)
        products += value
    return tl.sum(products, 0)


@triton.jit
def _store_switch_gradient(dswitch, weights, other_weights, sets, set_sums, own_sums, sizes, MEMBERS, SOFTMAX):
    """From the statistics of the sets and the gradients summed over them."""
    N, C, groups, chunks = sizes
    grads = tl.where(_is(IN), _dot(own_sums, None, C), 0.0)
    if LN & MEMBERS:
        grads = tl.where(_is(LN), _dot(sets, set_sums, N), grads)
    if GN & MEMBERS:
        grads = tl.where(_is(GN), _dot(sets + N, set_sums + N, N * groups), grads)
    if BN & MEMBERS:
        slot = N + N * groups
        grads = tl.where(_is(BN), _dot(sets + slot, set_sums + slot, chunks * C), grads)
    # Of a member without any weight, the statistics may never have been taken.
    grads = tl.where((weights == 0.0) & (other_weights == 0.0), 0.0, grads)
    if SOFTMAX:
        grads = weights * (grads - tl.sum(weights * grads, 0))
    inside, entry = _entries(MEMBERS)
    tl.store(dswitch + entry, grads, inside)


@triton.jit(do_not_specialize=_SIZES)
def _input_gradients(
    dx,
    dy,
    x,
    coefs,
    stats,
    sets,
    row_grads,
    set_sums,
    own_sums,
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
    STORED: tl.constexpr,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """dx; the gradients of the switches by the program that starts first, one beyond all rows."""
    C, P = _unpack_sizes(C, P, LAST, ALIGN)
    sizes = N, C, groups, chunks
    slots = N + N * groups + chunks * C
    weights = _weigh(mean_switch, MEMBERS, SOFTMAX), _weigh(var_switch, MEMBERS, SOFTMAX)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        _store_switch_gradient(dmean_switch, weights[0], weights[1], sets, set_sums, own_sums, sizes, MEMBERS, SOFTMAX)
        _store_switch_gradient(
            dvar_switch, weights[1], weights[0], sets + slots, set_sums + slots, own_sums + C, sizes, MEMBERS, SOFTMAX
        )

    # Backwards, as forward.
    r = _list_rows(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, WIDE)
    mask = r < N * C
    mean, _, _, mixed_var = _mix(stats, sets, r, mask, weights, sizes, MEMBERS)
    dmean = _pick(weights[0], IN) * tl.load(row_grads + r, mask, other=0.0)
    dvar = _pick(weights[1], IN) * tl.load(row_grads + N * C + r, mask, other=0.0)
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1 and not (STORED and 1 << k == BN):
            count = C if 1 << k == LN else C // groups if 1 << k == GN else N // chunks
            slot = _slot(r, sizes, 1 << k)
            set_mean = tl.load(sets + slot, mask, other=0.0)
            set_dmean = _pick(weights[0], 1 << k) * tl.load(set_sums + slot, mask, other=0.0)
            set_dvar = _pick(weights[1], 1 << k) * tl.load(set_sums + slots + slot, mask, other=0.0)
            dmean += (set_dmean + 2.0 * set_dvar * (mean - set_mean)) / count
            dvar += set_dvar / count
    scale = tl.load(weight + r % C, mask, other=0.0) / tl.sqrt(mixed_var + EPS)
    shift = dmean / P
    slope = 2.0 * dvar / tl.maximum(P - correction, 1)
    # By way of memory, as forward.
    coefs += tl.program_id(1) * 3 * N * C + r
    tl.store(coefs, scale, mask)
    tl.store(coefs + N * C, shift, mask)
    tl.store(coefs + 2 * N * C, slope, mask)
    tl.debug_barrier()
    mean = tl.load(stats + r, mask, other=0.0)[:, None]
    scale = tl.load(coefs, mask, other=0.0)[:, None]
    shift = tl.load(coefs + N * C, mask, other=0.0)[:, None]
    slope = tl.load(coefs + 2 * N * C, mask, other=0.0)[:, None]

    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = _locate(r, start, C, P, LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        grad = tl.load(dy + offsets, inside, other=0.0).to(mean.dtype)
        tl.store(dx + offsets, grad * scale + shift + (value - mean) * slope, inside)
