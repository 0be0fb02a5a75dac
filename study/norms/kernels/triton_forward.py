"""Triton kernels of the forward pass: statistics of rows, of the members and of the batch, and y."""

import triton
import triton.language as tl

from study.norms.kernels.triton_shared import (
    BLOCK,
    BN,
    BN_TILE,
    GN,
    GN_TILE,
    IN,
    LN,
    LN_TILE,
    SIZES,
    is_member,
    load_weights,
    mix_statistics,
    pixel_offsets,
    row_indices,
    set_indices,
    unpack_sizes,
)

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


@triton.jit(do_not_specialize=SIZES)
def row_statistics_kernel(
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
    C, P = unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    r = row_indices(tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    total = end - begin
    if running_mean is not None:
        # If only bn has a weight and it uses running statistics, x is not read, and the center is the running mean.
        weights = load_weights(mean_switch, MEMBERS, SOFTMAX), load_weights(var_switch, MEMBERS, SOFTMAX)
        others = tl.where(is_member(BN), 0.0, tl.abs(weights[0]) + tl.abs(weights[1]))
        needed = tl.sum(others, 0) != 0.0
        total = tl.where(needed, total, 0)

    mean = tl.zeros((ROWS, PIXELS), parts.dtype.element_ty)
    squares = tl.zeros_like(mean)
    count = tl.zeros((1, 1), mean.dtype)
    for start in range(begin, begin + total, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        value = tl.load(x + pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS), inside, other=0.0).to(mean.dtype)
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
    r, mask = set_indices(rows[1], BLOCK)
    mean, var = _load_row_moments(rows, r, mask)
    tl.store(stats + r, mean, mask)
    tl.store(stats + rows[1] + r, var, mask)


@triton.jit
def _group_statistics(rows, sets, total, size, set_count, TILE: tl.constexpr):
    j, mask = set_indices(total, TILE[0])
    if tl.program_id(0) * TILE[0] < total:
        mean, var = _set_moments(rows, j * size, 1, size, mask, TILE[0], TILE[1])
        tl.store(sets + j, mean, mask)
        tl.store(sets + set_count + j, var, mask)


@triton.jit
def _chunk_statistics(rows, sets, batch, running_mean, running_var, N, C, chunks, set_count, TILE: tl.constexpr):
    c, mask = set_indices(C, TILE[0])
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


@triton.jit(do_not_specialize=SIZES)
def member_statistics_kernel(
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
            _group_statistics(rows, sets, N, C, set_count, LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _group_statistics(rows, sets + N, N * groups, C // groups, set_count, GN_TILE)
    else:
        if BN & MEMBERS:
            first = N + N * groups
            _chunk_statistics(rows, sets + first, batch, running_mean, running_var, N, C, chunks, set_count, BN_TILE)


@triton.jit(do_not_specialize=SIZES)
def normalize_kernel(
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
    """Computes y."""
    C, P = unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    # In reverse order, because the rows that were read last may still be in the cache.
    r = row_indices(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    weights = load_weights(mean_switch, MEMBERS, SOFTMAX), load_weights(var_switch, MEMBERS, SOFTMAX)
    mean, _, mixed_mean, mixed_var = mix_statistics(stats, sets, r, mask, weights, (N, C, groups, chunks), MEMBERS)
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
        offsets = pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        tl.store(y + offsets, (value - mean) * scale + shift, inside)
