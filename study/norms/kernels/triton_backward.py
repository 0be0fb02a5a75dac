"""Triton kernels of the backward pass: sums over rows and over the sets of each member, and dx."""

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
    index_of_set,
    is_member,
    load_weights,
    mix_statistics,
    pixel_offsets,
    pool_entries,
    row_indices,
    set_indices,
    unpack_sizes,
    weight_of,
)


@triton.jit(do_not_specialize=SIZES)
def row_sums_kernel(
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
    C, P = unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    r = row_indices(tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    mean = tl.load(stats + r, mask, other=0.0)
    dy_sum = tl.zeros((ROWS, PIXELS), mean.dtype)
    dy_x_sum = tl.zeros_like(dy_sum)
    begin = tl.program_id(1) * (steps * PIXELS)
    end = tl.minimum(begin + steps * PIXELS, P)
    for start in range(begin, end, PIXELS):
        inside = mask[:, None] & (start + tl.arange(0, PIXELS) < P)[None, :]
        offsets = pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
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
    mean, var, mixed_mean, mixed_var = mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS)
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
    j, mask = set_indices(total, TILE[0])
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
    c, mask = set_indices(C, TILE[0])
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


@triton.jit(do_not_specialize=SIZES)
def set_sums_kernel(
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
    weights = load_weights(mean_switch, MEMBERS, SOFTMAX), load_weights(var_switch, MEMBERS, SOFTMAX)
    inputs = parts, splits, stats, sets, weight, weights, (N, C, groups, chunks)
    if member == LN:
        if LN & MEMBERS:
            _sum_groups(inputs, set_sums, N, C, set_count, MEMBERS, EPS, LN_TILE)
    elif member == GN:
        if GN & MEMBERS:
            _sum_groups(inputs, set_sums + N, N * groups, C // groups, set_count, MEMBERS, EPS, GN_TILE)
    else:
        chunk_sums = set_sums + N + N * groups
        _sum_chunks(inputs, row_grads, chunk_sums, in_sums, dweight, dbias, set_count, MEMBERS, EPS, BN_TILE)


@triton.jit
def _dot(a, b, total):
    """The sum of a[i] * b[i] over i < total, or of a[i] if b is None."""
    products = tl.zeros((BLOCK,), a.dtype.element_ty)
    for start in range(0, total, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(a + i, i < total, other=0.0)
        if b is not None:
            value *= tl.load(b + i, i < total, other=0.0)
        products += value
    return tl.sum(products, 0)


@triton.jit
def _store_switch_gradient(dswitch, weights, other_weights, sets, set_sums, in_sums, sizes, MEMBERS, SOFTMAX):
    """Stores the gradient of a switch, from the statistics of the sets and the sums of gradients over the sets."""
    N, C, groups, chunks = sizes
    grads = tl.where(is_member(IN), _dot(in_sums, None, C), 0.0)
    if LN & MEMBERS:
        grads = tl.where(is_member(LN), _dot(sets, set_sums, N), grads)
    if GN & MEMBERS:
        grads = tl.where(is_member(GN), _dot(sets + N, set_sums + N, N * groups), grads)
    if BN & MEMBERS:
        first = N + N * groups
        grads = tl.where(is_member(BN), _dot(sets + first, set_sums + first, chunks * C), grads)
    # The statistics of a member whose weights are both 0 may not have been computed.
    grads = tl.where((weights == 0.0) & (other_weights == 0.0), 0.0, grads)
    if SOFTMAX:
        grads = weights * (grads - tl.sum(weights * grads, 0))
    inside, entry = pool_entries(MEMBERS)
    tl.store(dswitch + entry, grads, inside)


@triton.jit(do_not_specialize=SIZES)
def input_gradients_kernel(
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
    C, P = unpack_sizes(C, P, CHANNELS_LAST, ALIGN)
    sizes = N, C, groups, chunks
    set_count = N + N * groups + chunks * C
    weights = load_weights(mean_switch, MEMBERS, SOFTMAX), load_weights(var_switch, MEMBERS, SOFTMAX)
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

    # In reverse order, as in `normalize_kernel`.
    r = row_indices(tl.num_programs(0) - 1 - tl.program_id(0), ROWS, INDEX64)
    mask = r < N * C
    mean, _, _, mixed_var = mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS)
    dmean = weight_of(weights[0], IN) * tl.load(row_grads + r, mask, other=0.0)
    dvar = weight_of(weights[1], IN) * tl.load(row_grads + N * C + r, mask, other=0.0)
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1 and not (USES_RUNNING and 1 << k == BN):
            count = C if 1 << k == LN else C // groups if 1 << k == GN else N // chunks
            set_index = index_of_set(r, sizes, 1 << k)
            set_mean = tl.load(sets + set_index, mask, other=0.0)
            set_dmean = weight_of(weights[0], 1 << k) * tl.load(set_sums + set_index, mask, other=0.0)
            set_dvar = weight_of(weights[1], 1 << k) * tl.load(set_sums + set_count + set_index, mask, other=0.0)
            dmean += (set_dmean + 2.0 * set_dvar * (mean - set_mean)) / count
            dvar += set_dvar / count
    scale = tl.load(weight + r % C, mask, other=0.0) / tl.sqrt(mixed_var + EPS)
    shift = dmean / P
    slope = 2.0 * dvar / tl.maximum(P - correction, 1)
    # Through memory, as in `normalize_kernel`.
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
        offsets = pixel_offsets(r, start, C, P, CHANNELS_LAST, PIXELS)
        value = tl.load(x + offsets, inside, other=0.0).to(mean.dtype)
        grad = tl.load(dy + offsets, inside, other=0.0).to(mean.dtype)
        tl.store(dx + offsets, grad * scale + shift + (value - mean) * slope, inside)
