"""Runs switch layers on compiled kernels, C++ on CPUs and Triton on CUDA devices, or on the reference implementation.

The functions have the names and arguments of `study.norms.kernels.reference`. The kernels are operators of the torch
namespace `switch_norm` whose autograd is in C++. A forward pass saves x and its mean and variance for each (sample,
channel). No call waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from study.norms.kernels import reference
from study.norms.kernels.build import BuildError, build_library
from study.norms.kernels.sync import count_ranks
from study.norms.mixing import Centre
from study.norms.names import POOLS

_OPTIONS = "int members, int groups, int chunks, int correction, float eps, bool softmax"
_SCHEMAS = (
    "forward(Tensor x, Tensor mean_switch, Tensor var_switch, Tensor weight, Tensor bias, Tensor? running_mean, "
    f"Tensor? running_var, {_OPTIONS}) -> (Tensor y, Tensor stats, Tensor batch)",
    "backward(Tensor dy, Tensor x, Tensor stats, Tensor mean_switch, Tensor var_switch, Tensor weight, "
    f"Tensor? running_mean, Tensor? running_var, {_OPTIONS}) -> (Tensor dx, Tensor dweight, Tensor dbias, "
    "Tensor dmean_switch, Tensor dvar_switch)",
    "update_running_statistics(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor batch, float momentum) -> ()",
    "sparse_switch(Tensor logits, Tensor radius, Tensor fixed, Tensor choice) -> Tensor",
    "sparse_switch_backward(Tensor dweights, Tensor logits, Tensor radius, Tensor fixed) -> Tensor",
    "fix_choice(Tensor(a!) logits, Tensor radius, Tensor(b!) fixed, Tensor(c!) choice) -> ()",
)
_LIBRARY = torch.library.Library("switch_norm", "DEF")
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)
for _name in ("backward", "update_running_statistics", "sparse_switch_backward", "fix_choice"):  # without a gradient
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
_ops = torch.ops.switch_norm
_KERNEL_MEMBERS = ("in", "ln", "bn", "gn")  # what kernels.cpp and the Triton kernels compute, in order of bits
_MEMBER_BITS = {pool: sum(1 << _KERNEL_MEMBERS.index(name) for name in pool)
                for pool in POOLS if set(pool) <= set(_KERNEL_MEMBERS)}  # fmt: skip
_BN = _MEMBER_BITS["bn",]
_PARAMETER_DTYPES = (torch.float32, torch.float64)
_INPUT_DTYPES = (*_PARAMETER_DTYPES, torch.bfloat16, torch.float16)
_loaded: dict[str, bool] = {}
_enabled = True


@contextmanager
def plain_norms() -> Iterator[None]:
    """Makes switch layers run the reference implementation inside this context.

    For comparisons, for second derivatives, and under `torch.func`.
    """
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def load_kernels(device_type: str) -> bool:
    """Returns whether there are kernels for this type of device. The first call loads them, on CPUs compiles them."""
    if device_type not in _loaded:
        _loaded[device_type] = _try_load(device_type)
    return _loaded[device_type]


def kernel_kind(device_type: str, *, sync: bool = False, pools: Iterable[tuple[str, ...]] = ()) -> str:
    """Returns what switch layers run on this type of device: `fused` (kernels) or `plain` (reference implementation).

    The two differ by rounding, so records contain this word. `pools`: those of the network's layers.
    """
    supported = set().union(*pools) <= set(_KERNEL_MEMBERS) and not (sync and count_ranks() > 1)
    return "fused" if _enabled and supported and load_kernels(device_type) else "plain"


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
    """Computes `reference.normalize` with the kernels of x's device.

    Falls back to the reference over several ranks, for a member that the kernels lack, for an empty x, and for x (N, C)
    with a correction.

    Kernels skip a member whose two weights are exactly 0: no mixing rule passes a gradient to such a weight.
    """
    beyond = (sync and "bn" in pool and count_ranks() > 1) or (correction and x.dim() == 2)
    supported = pool in _MEMBER_BITS and x.dtype in _INPUT_DTYPES and x.numel() and not beyond
    if not (_enabled and supported and load_kernels("cpu" if x.is_cpu else x.device.type)):
        return reference.normalize(
            x, switch, affine, running,
            softmax=softmax, pool=pool, groups=groups, chunks=chunks, correction=correction, eps=eps, sync=sync,
        )  # fmt: skip
    if switch[0].dim() == 2 and not x.is_cpu:  # the Triton kernels take one trial at a time
        return reference.normalize_trials(
            normalize, x, switch, affine, running,
            softmax=softmax, pool=pool, groups=groups, chunks=chunks, correction=correction, eps=eps,
        )  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = [each if each is None or each.dtype == dtype else each.to(dtype)
              for each in (*switch, *affine, *(running or (None, None)))]  # fmt: skip
    members = _MEMBER_BITS[pool]
    y, _, batch = _ops.forward.default(x, *inputs, members, groups, chunks, correction, eps, softmax)
    return y, batch if running is None and members & _BN else None


def update_running_statistics(running_mean: Tensor, running_var: Tensor, batch: Tensor, momentum: float) -> None:
    """Moves running statistics (C,) towards those of a batch (2, C), in place."""
    if _enabled and batch.is_cpu and batch.dtype == running_mean.dtype and load_kernels("cpu"):
        _ops.update_running_statistics.default(running_mean, running_var, batch, momentum)
    else:
        reference.update_running_statistics(running_mean, running_var, batch, momentum)


def sparse_switch(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor, centre: Centre = "simplex") -> Tensor:
    """Computes `reference.sparse_switch`; the kernels know the centre of the simplex only."""
    if _enabled and centre == "simplex" and logits.is_cpu and logits.dtype in _PARAMETER_DTYPES and load_kernels("cpu"):
        weights: Tensor = _ops.sparse_switch.default(logits, radius, fixed, choice)
        return weights
    return reference.sparse_switch(logits, radius, fixed, choice, centre)


def fix_choice(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor, centre: Centre = "simplex") -> None:
    """Does what `reference.fix_choice` does."""
    if _enabled and centre == "simplex" and logits.is_cpu and logits.dtype in _PARAMETER_DTYPES and load_kernels("cpu"):
        _ops.fix_choice.default(logits, radius, fixed, choice)
    else:
        reference.fix_choice(logits, radius, fixed, choice, centre)


@torch.library.register_fake("switch_norm::forward")
def _fake_forward(x: Tensor, mean_switch: Tensor, var_switch: Tensor, weight: Tensor, bias: Tensor,
                  running_mean: Tensor | None, running_var: Tensor | None, members: int, *_: Any) -> Any:  # fmt: skip
    uses_batch = members & _BN and running_mean is None
    stats = weight.new_empty(2, *x.shape[:2])
    return _empty_dense(x), stats, weight.new_empty(2, x.shape[1] if uses_batch else 0)


@torch.library.register_fake("switch_norm::backward")
def _fake_backward(dy: Tensor, x: Tensor, stats: Tensor, mean_switch: Tensor, var_switch: Tensor, weight: Tensor,
                   *_: Any) -> Any:  # fmt: skip
    parameters = (torch.empty_like(each) for each in (weight, weight, mean_switch, var_switch))
    return _empty_dense(x), *parameters


@torch.library.register_fake("switch_norm::sparse_switch")
def _fake_sparse_switch(logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits)


@torch.library.register_fake("switch_norm::sparse_switch_backward")
def _fake_sparse_switch_backward(dweights: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(dweights)


@torch.library.register_fake("switch_norm::update_running_statistics")
@torch.library.register_fake("switch_norm::fix_choice")
def _fake_in_place(*_: Any) -> None:
    """These operators change their arguments and return nothing."""


def _empty_dense(x: Tensor) -> Tensor:
    """Returns what the kernels allocate for y and dx: like x if x is contiguous or channels last, else contiguous."""
    is_kept = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    return torch.empty_like(x, memory_format=torch.preserve_format if is_kept else torch.contiguous_format)


@torch.compiler.assume_constant_result  # the first call may be inside a compiled function
def _try_load(device_type: str) -> bool:
    try:
        if device_type == "cpu":
            torch.ops.load_library(build_library())
        elif device_type == "cuda" and load_kernels("cpu"):  # the same library contains autograd
            from study.norms.kernels import triton_launch

            _LIBRARY.impl("forward", triton_launch.forward, "CUDA")
            _LIBRARY.impl("backward", triton_launch.backward, "CUDA")
        else:
            return False
    except (BuildError, ImportError, OSError) as error:
        warnings.warn(
            f"switch norms run the reference implementation in plain torch, several times slower: {error}", stacklevel=2
        )
        return False
    return True
