"""The arithmetic of `study.norms.kernels.reference` with two passes over memory each way: C++ on CPUs, Triton on GPUs.

Functions of the same names and arguments, and the operators behind them, whose autograd is in C++. What is saved for
the backward pass is x and its mean and variance by (sample, channel). No call waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from study.norms.kernels import reference
from study.norms.kernels.build import BuildError, library
from study.norms.kernels.sync import count_ranks
from study.norms.names import NORMALIZERS, POOLS

_OPTIONS = "int members, int groups, int chunks, int correction, float eps, bool softmax"
_SCHEMAS = (
    "forward(Tensor x, Tensor mean_switch, Tensor var_switch, Tensor weight, Tensor bias, Tensor? running_mean, "
    f"Tensor? running_var, {_OPTIONS}) -> (Tensor y, Tensor stats, Tensor batch)",
    "backward(Tensor dy, Tensor x, Tensor stats, Tensor mean_switch, Tensor var_switch, Tensor weight, "
    f"Tensor? running_mean, Tensor? running_var, {_OPTIONS}) -> (Tensor dx, Tensor dweight, Tensor dbias, "
    "Tensor dmean_switch, Tensor dvar_switch)",
    "track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor batch, float momentum) -> ()",
    "sparse_switch(Tensor logits, Tensor radius, Tensor fixed, Tensor choice) -> Tensor",
    "sparse_switch_backward(Tensor dweights, Tensor logits, Tensor radius, Tensor fixed) -> Tensor",
    "fix_choice(Tensor(a!) logits, Tensor radius, Tensor(b!) fixed, Tensor(c!) choice) -> ()",
)
_OPERATORS = torch.library.Library("study_norms", "DEF")
for _schema in _SCHEMAS:
    _OPERATORS.define(_schema, tags=torch.Tag.pt2_compliant_tag)
for _name in ("backward", "track", "sparse_switch_backward", "fix_choice"):  # they have no gradient
    _OPERATORS.impl(_name, torch.library.fallthrough_kernel, "Autograd")
_ops = torch.ops.study_norms
_MEMBERS = {pool: sum(1 << NORMALIZERS.index(name) for name in pool) for pool in POOLS}
_BN = _MEMBERS["bn",]
_WIDE = (torch.float32, torch.float64)
_DTYPES = (*_WIDE, torch.bfloat16, torch.float16)
_loaded: dict[str, bool] = {}
_enabled = True


@contextmanager
def plain_norms() -> Iterator[None]:
    """Inside, switch layers run their plain form: to compare, for gradients of gradients, and under `torch.func`."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def available(device_type: str) -> bool:
    """Whether there are kernels for this type of device. The first call loads them, or compiles them (CPU)."""
    if device_type not in _loaded:
        _loaded[device_type] = _load(device_type)
    return _loaded[device_type]


def form(device_type: str, *, sync: bool = False) -> str:
    """`fused` or `plain`: which arithmetic a switch layer runs on this type of device. They differ by rounding."""
    return "fused" if _enabled and not (sync and count_ranks() > 1) and available(device_type) else "plain"


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
    """What `reference.normalize` does, by the kernels of x's device, or by itself: without kernels, and between ranks.

    A member whose two weights are exactly 0 is not computed: no mixing rule passes a gradient to such a weight.
    """
    joins = sync and "bn" in pool and count_ranks() > 1
    fits = x.dtype in _DTYPES and x.numel() and not joins
    if not (_enabled and fits and available("cpu" if x.is_cpu else x.device.type)):
        return reference.normalize(
            x, switch, affine, stored,
            softmax=softmax, pool=pool, groups=groups, chunks=chunks, correction=correction, eps=eps, sync=sync,
        )  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = [each if each is None or each.dtype == dtype else each.to(dtype)
              for each in (*switch, *affine, *(stored or (None, None)))]  # fmt: skip
    members = _MEMBERS[pool]
    y, _, batch = _ops.forward.default(x, *inputs, members, groups, chunks, correction, eps, softmax)
    return y, batch if stored is None and members & _BN else None


def track(running_mean: Tensor, running_var: Tensor, batch: Tensor, momentum: float) -> None:
    """Moves running statistics (C,) towards those of a batch (2, C), in place."""
    if _enabled and batch.is_cpu and batch.dtype == running_mean.dtype and available("cpu"):
        _ops.track.default(running_mean, running_var, batch, momentum)
    else:
        reference.track(running_mean, running_var, batch, momentum)


def sparse_switch(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor) -> Tensor:
    """What `reference.sparse_switch` does."""
    if _enabled and logits.is_cpu and logits.dtype in _WIDE and available("cpu"):
        weights: Tensor = _ops.sparse_switch.default(logits, radius, fixed, choice)
        return weights
    return reference.sparse_switch(logits, radius, fixed, choice)


def fix_choice(logits: Tensor, radius: Tensor, fixed: Tensor, choice: Tensor) -> None:
    """What `reference.fix_choice` does."""
    if _enabled and logits.is_cpu and logits.dtype in _WIDE and available("cpu"):
        _ops.fix_choice.default(logits, radius, fixed, choice)
    else:
        reference.fix_choice(logits, radius, fixed, choice)


@torch.library.register_fake("study_norms::forward")
def _forward_shapes(x: Tensor, mean_switch: Tensor, var_switch: Tensor, weight: Tensor, bias: Tensor,
                    running_mean: Tensor | None, running_var: Tensor | None, members: int, *_: Any) -> Any:  # fmt: skip
    tracked = members & _BN and running_mean is None
    stats = weight.new_empty(2, *x.shape[:2])
    return torch.empty_like(x), stats, weight.new_empty(2, x.shape[1] if tracked else 0)


@torch.library.register_fake("study_norms::backward")
def _backward_shapes(dy: Tensor, x: Tensor, stats: Tensor, mean_switch: Tensor, var_switch: Tensor, weight: Tensor,
                     *_: Any) -> Any:  # fmt: skip
    parameters = (torch.empty_like(each) for each in (weight, weight, mean_switch, var_switch))
    return torch.empty_like(x), *parameters


@torch.library.register_fake("study_norms::sparse_switch")
def _switch_shape(logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits)


@torch.library.register_fake("study_norms::sparse_switch_backward")
def _switch_gradient_shape(dweights: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(dweights)


@torch.library.register_fake("study_norms::track")
@torch.library.register_fake("study_norms::fix_choice")
def _no_shapes(*_: Any) -> None:
    """These change their arguments and return nothing."""


@torch.compiler.assume_constant_result  # where a compiled pass is the first
def _load(device_type: str) -> bool:
    try:
        if device_type == "cpu":
            torch.ops.load_library(library())
        elif device_type == "cuda" and available("cpu"):  # gradients are in the same library
            from study.norms.kernels import triton_kernels

            _OPERATORS.impl("forward", triton_kernels.forward, "CUDA")
            _OPERATORS.impl("backward", triton_kernels.backward, "CUDA")
        else:
            return False
    except (BuildError, ImportError, OSError) as error:
        warnings.warn(f"switch norms run in their plain form, several times slower: {error}", stacklevel=2)
        return False
    return True
