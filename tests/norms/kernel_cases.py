"""Compares kernels with the reference implementation in float64, on fixed and random configurations.

As a program, it runs the Triton kernels on the CPU. This needs TRITON_INTERPRET=1 before triton is imported.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace

import torch

from study.norms.kernels.reference import normalize
from study.norms.names import NORMALIZERS

ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass(frozen=True, kw_only=True)
class Case:
    shape: tuple[int, ...]
    members: int = 15
    groups: int = 1
    chunks: int = 1
    correction: int = 0
    eps: float = 1e-5
    softmax: bool = True
    uses_running: bool = False
    channels_last: bool = False
    one_hot: int | None = None
    dtype: torch.dtype = torch.float32
    offset: float = 0.5
    seed: int = 0


FIXED_CASES = (
    Case(shape=(4, 6), groups=3, chunks=2),
    Case(shape=(4, 6, 1, 1), correction=1, channels_last=True),
    Case(shape=(1, 1, 1)),
    Case(shape=(2, 8, 7, 7), channels_last=True, groups=4, dtype=torch.bfloat16),
    Case(shape=(2, 8, 7, 7), groups=4, dtype=torch.float16),
    Case(shape=(70, 4, 2), members=5, dtype=torch.float64),
    Case(shape=(2, 520, 2), members=10, groups=2, dtype=torch.float64),
    # Rows that are split into several parts, in both layouts.
    Case(shape=(2, 3, 71, 73), correction=1),
    Case(shape=(2, 12, 17, 43), channels_last=True, correction=1, chunks=2),
    # Only bn has a weight, with running statistics.
    Case(shape=(2, 5, 3, 3), uses_running=True, one_hot=2),
    Case(shape=(2, 5, 3, 3), uses_running=True, one_hot=2, softmax=False, channels_last=True),
    Case(shape=(2, 5, 3, 3), uses_running=True, members=4),
    Case(shape=(4, 5, 3, 3), one_hot=1, chunks=2),
    *(Case(shape=(4, 6, 5, 3), members=members, groups=3, chunks=2) for members in (1, 2, 4, 8)),
    *(Case(shape=(4, 6, 8, 8), offset=1e4, channels_last=channels_last, groups=2) for channels_last in (False, True)),
)


def draw_case(seed: int) -> Case:
    draw = random.Random(seed)
    members, groups, samples = draw.randint(1, 15), draw.choice([1, 2, 3, 5]), draw.randint(1, 4)
    dims = draw.randint(0, 3)
    uses_running = members & 4 > 0 and draw.random() < 0.25
    chunks = 1 if uses_running else draw.choice([1, 1, 2, 4])
    spatial = (draw.randint(1, (0, 70, 13, 6)[dims]) for _ in range(dims))
    return Case(
        shape=(samples * chunks, groups * draw.randint(1, 8), *spatial),
        members=members,
        groups=groups if members & 8 else 1,
        chunks=chunks,
        correction=draw.randint(0, 1) if dims else 0,  # x (N, C) with a correction runs on the reference
        eps=draw.choice([1e-5, 1e-2]),
        softmax=draw.random() < 0.7,
        uses_running=uses_running,
        channels_last=draw.random() < 0.5,
        dtype=draw.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
        seed=seed,
    )


def build(case: Case, device: str = "cpu"):
    """Returns x, dy and the arguments of `forward` after x."""
    generator = torch.Generator().manual_seed(case.seed)
    samples, channels = case.shape[:2]
    size = case.members.bit_count()

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(*case.shape) * draw(samples, channels, *[1] * (len(case.shape) - 2)).exp() + case.offset * (1 + draw(1))
    dy = draw(*case.shape[::-1]).permute(*range(len(case.shape))[::-1])
    switches = [draw(size) if case.softmax else draw(size).softmax(0) for _ in range(2)]
    if case.one_hot is not None:
        hot = torch.zeros(size, dtype=torch.float64)
        hot[(case.members & ((1 << case.one_hot) - 1)).bit_count()] = 1.0
        switches = [hot.log() if case.softmax else hot] * 2
    affine = [1 + draw(channels) / 2, draw(channels)]
    running = [draw(channels), draw(channels).exp()] if case.uses_running else [None, None]
    wide = torch.promote_types(case.dtype, torch.float32)
    x, dy = (each.to(device, case.dtype) for each in (x, dy))
    if case.channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    parameters = [each if each is None else each.to(device, wide) for each in (*switches, *affine, *running)]
    options = (case.members, case.groups, case.chunks, case.correction, case.eps, case.softmax)
    return x, dy, parameters, options


def run_kernels(case: Case, kernels, device: str = "cpu"):
    """Returns y, batch and the gradients of x, gamma, beta and the switches, from the kernels."""
    x, dy, parameters, options = build(case, device)
    y, stats, batch, *grads = apply_kernels(kernels, x, dy, parameters, options)
    weight, running = parameters[2], parameters[4:]
    if case.uses_running and (case.one_hot == 2 or case.members == 4):  # x was not read
        assert torch.equal(stats, torch.stack((running[0], torch.zeros_like(weight))).unsqueeze(1).expand_as(stats))
    return y, batch, *grads


def apply_kernels(kernels, x, dy, parameters, options):
    """Returns y, the saved statistics, batch and the gradients."""
    y, stats, batch = kernels.forward(x, *parameters, *options)
    mean_switch, var_switch, weight, _, *running = parameters
    grads = kernels.backward(dy, x, stats, mean_switch, var_switch, weight, *running, *options)
    assert stats.shape == (2, *x.shape[:2])
    for each in (y, grads[0]):
        assert each.dtype == x.dtype
        assert each.stride() == x.stride()
    return y, stats, batch, *grads


def build_trials(case: Case, trials: int):
    """Returns what `build` does for each trial of a group, and for all as one; every second one is not one-hot."""
    cases = [replace(case, seed=97 * case.seed + n, one_hot=None if n % 2 else case.one_hot) for n in range(trials)]
    single = [build(each) for each in cases]
    xs, dys, parameters, options = zip(*single, strict=True)
    joined = [torch.cat(each, dim=1) for each in (xs, dys)]
    if case.channels_last:
        joined = [each.movedim(1, -1).contiguous().movedim(-1, 1) for each in joined]
    switches, by_channel = (list(zip(*part, strict=True)) for part in
                            ([each[:2] for each in parameters], [each[2:] for each in parameters]))  # fmt: skip
    together = [*map(torch.stack, switches), *(None if each[0] is None else torch.cat(each) for each in by_channel)]
    return single, (*joined, together, options[0])


def run_reference(case: Case, dtype: torch.dtype, device: str = "cpu"):
    """Returns the same from the reference implementation and autograd, all in `dtype`."""
    x, dy, parameters, _ = build(case, device)
    mean_switch, var_switch, weight, bias, *running = (each if each is None else each.to(dtype) for each in parameters)
    leaves = [each.clone().requires_grad_() for each in (x.to(dtype), weight, bias, mean_switch, var_switch)]
    switch = tuple(leaf.softmax(0) if case.softmax else leaf for leaf in leaves[3:])
    y, batch = normalize(
        leaves[0],
        switch,
        tuple(leaves[1:3]),
        tuple(running) if case.uses_running else None,
        softmax=False,
        pool=tuple(name for bit, name in enumerate(NORMALIZERS) if case.members >> bit & 1),
        groups=case.groups,
        chunks=case.chunks,
        correction=case.correction,
        eps=case.eps,
    )
    grads = list(torch.autograd.grad(y, leaves, dy.to(dtype)))
    unused = (switch[0] == 0) & (switch[1] == 0)
    grads[3:] = (grad.masked_fill(unused, 0.0) for grad in grads[3:])
    if batch is None:
        return y.detach(), weight.new_empty(2, 0), *grads
    return y.detach(), batch, *grads


def compare(case: Case, kernels, device: str = "cpu") -> None:
    """Asserts that errors are at most those of rounding plus four times those of the reference in the same dtype."""
    names = ("y", "batch", "dx", "dweight", "dbias", "dmean_switch", "dvar_switch")
    wide = torch.promote_types(case.dtype, torch.float32)
    results = (
        run_kernels(case, kernels, device),
        run_reference(case, wide, device),
        run_reference(case, torch.float64, device),
    )
    for name, actual, same_dtype, exact in zip(names, *results, strict=True):
        if not exact.numel():
            assert actual.shape == exact.shape
            continue
        # If means are large, their rounding error dominates; the reference in the same dtype shows how much it is.
        rounding = ROUNDING[case.dtype if name in ("y", "dx") else wide] * max(1.0, exact.abs().max().item())
        atol = rounding + 4 * (same_dtype.double() - exact).abs().max().item()
        torch.testing.assert_close(
            actual.double(), exact, rtol=0, atol=atol, msg=lambda text, of=f"{name} of {case}": f"{of}: {text}"
        )


if __name__ == "__main__":
    assert "triton" not in sys.modules  # the package must not need it
    from study.norms.kernels import triton_launch

    torch.use_deterministic_algorithms(True)  # fills new memory with NaN, which shows values that no kernel wrote
    fast_seeds = 6, 12, 17, 20, 27, 30
    for case in (*FIXED_CASES, *map(draw_case, fast_seeds)):
        compare(case, triton_launch)
