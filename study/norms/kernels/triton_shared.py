"""What the forward and the backward Triton kernels share: members, tiles, indices, and the mixed statistics of rows."""

import triton
import triton.language as tl

# Bits of the members of a pool, in the order of switch weights.
IN, LN, BN, GN = (tl.constexpr(1 << k) for k in range(4))

# Tiles of (sets, rows per set).
LN_TILE, BN_TILE, GN_TILE = (tl.constexpr(tile) for tile in ((1, 512), (16, 32), (16, 32)))
BLOCK = tl.constexpr(1024)

# Arguments that Triton must not specialize: it would compile again when one of these is 1 or divisible by 16.
SIZES = ["N", "C", "P", "groups", "chunks", "correction", "splits", "span", "steps"]


# Weights of the members.


@triton.jit
def pool_entries(MEMBERS: tl.constexpr):
    """Whether each of the four members is in the pool, and its index in the switches."""
    inside = (MEMBERS >> tl.arange(0, 4)) & 1
    return inside != 0, tl.cumsum(inside, 0) - inside


@triton.jit
def load_weights(switch, MEMBERS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Loads a switch and returns the weights of all members (4,), 0 outside the pool."""
    inside, entry = pool_entries(MEMBERS)
    if SOFTMAX:
        logits = tl.load(switch + entry, inside, other=float("-inf"))
        powers = tl.exp(logits - tl.max(logits, 0))
        weights = powers / tl.sum(powers, 0)
    else:
        weights = tl.load(switch + entry, inside, other=0.0)
    return weights


@triton.jit
def is_member(MEMBER: tl.constexpr):
    """Which of the four members this is (4,)."""
    return (1 << tl.arange(0, 4)) == MEMBER


@triton.jit
def weight_of(weights, MEMBER: tl.constexpr):
    """The weight of one member, from those of all four."""
    return tl.sum(tl.where(is_member(MEMBER), weights, 0.0), 0)


# Indices and memory offsets.


@triton.jit
def unpack_sizes(C, P, CHANNELS_LAST: tl.constexpr, ALIGN: tl.constexpr):
    """C and P. The dimension that is adjacent in memory is a multiple of ALIGN, so the compiler can vectorize loads."""
    if CHANNELS_LAST:
        C = C * ALIGN
    else:
        P = P * ALIGN
    return C, P


@triton.jit
def row_indices(program, ROWS: tl.constexpr, INDEX64: tl.constexpr):
    """Indices of the rows of a program."""
    if INDEX64:
        program = program.to(tl.int64)
    return program * ROWS + tl.arange(0, ROWS)


@triton.jit
def set_indices(total, SETS: tl.constexpr):
    """Indices of the sets of this program, and whether there are such sets."""
    j = tl.program_id(0) * SETS + tl.arange(0, SETS)
    return j, j < total


@triton.jit
def pixel_offsets(r, start, C, P, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets in x (rows, PIXELS) of the pixels from `start` on in each row."""
    first = r // C * C * P + r % C if CHANNELS_LAST else r * P
    p = start + tl.arange(0, PIXELS)
    return first[:, None] + p.to(r.dtype)[None, :] * (C if CHANNELS_LAST else 1)


@triton.jit
def index_of_set(r, sizes, MEMBER: tl.constexpr):
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
def mix_statistics(stats, sets, r, mask, weights, sizes, MEMBERS: tl.constexpr):
    """Means and variances of rows, and the mixed means and variances that normalize them."""
    N, C, groups, chunks = sizes
    set_count = N + N * groups + chunks * C
    mean = tl.load(stats + r, mask, other=0.0)
    var = tl.load(stats + N * C + r, mask, other=0.0)
    mixed_mean = weight_of(weights[0], IN) * mean
    mixed_var = weight_of(weights[1], IN) * var
    for k in tl.static_range(1, 4):
        if (MEMBERS >> k) & 1:
            set_index = index_of_set(r, sizes, 1 << k)
            mixed_mean += weight_of(weights[0], 1 << k) * tl.load(sets + set_index, mask, other=0.0)
            mixed_var += weight_of(weights[1], 1 << k) * tl.load(sets + set_count + set_index, mask, other=0.0)
    return mean, var, mixed_mean, mixed_var
