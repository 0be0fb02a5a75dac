"""Mixing rules: functions from logits to switch weights, which are points of the simplex."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Centre = Literal["simplex", "support"]
"""The point from which `sparsestmax` measures the radius."""


def softmax(logits: Tensor) -> Tensor:
    """Computes softmax over the last dimension, in float32 or better (SN: Luo et al., 1806.10779)."""
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def sparsestmax(logits: Tensor, radius: float | Tensor, centre: Centre = "simplex") -> Tensor:
    """Computes weights on the simplex, at least `radius` away from its centre (SSN: Shao et al., 1903.03793).

    logits: (..., K); radius: at least 0, a float or a tensor (...). Returns weights like `logits`.

    At radius 0 this is sparsemax; from the circumradius sqrt(1 - 1/K) on, weights are one-hot. In between, the paper
    pushes the sparsemax away from the centre and, where the result leaves the simplex, projects it and repeats both
    steps in the remaining face. All of these points lie on one path, sparsemax(t * logits), so it suffices to find the
    smallest t >= 1 whose point is far enough from the centre. With V_n the sum of squared deviations of the n largest
    logits from their mean, the squared distance along the path is the minimum over n of 1/n - 1/K + t^2 V_n. Hence

        t = max over n of sqrt((radius^2 + 1/K - 1/n) / V_n)

    which needs neither recursion nor branching on data. Where the largest logits tie, the path has no direction: the
    first of them in pool order is then treated as larger by a rounding error, and the gradient, which is unbounded
    there, is that of sparsemax.

    The last version of the authors' code differs where sparsemax itself drops members: it measures the same radius from
    the centre of the face of the S members that remain. This is `centre="support"`, with 1/S in place of 1/K. Where two
    of three members remain, weights are then one-hot from sqrt(1/2) on.
    """
    size = logits.shape[-1]
    if size == 1:
        return torch.softmax(logits, dim=-1)  # 1, with a gradient of 0
    dtype = torch.promote_types(logits.dtype, torch.float32)
    epsilon = torch.finfo(dtype).eps
    counts = torch.arange(1, size + 1, dtype=dtype, device=logits.device)

    # Sparsemax depends only on differences of logits, and a logit that is 1 below the largest already has weight 0.
    ordered, order = logits.to(dtype).sort(dim=-1, descending=True, stable=True)
    gaps = (ordered - ordered[..., :1].detach()).clamp(min=-1.0)
    untied = torch.where(counts > 1, gaps.clamp(max=-epsilon), gaps)

    # The stretch t, over n = 2 to K: at n = 1 weights are one-hot, which is far enough.
    if isinstance(radius, Tensor):
        radius = radius.to(dtype).unsqueeze(-1)
    faces = counts[-1:] if centre == "simplex" else _find_support(gaps, counts).sum(-1, keepdim=True)
    excess = (radius * radius + (counts - faces) / (faces * counts))[..., 1:].clamp(0.0, 1.0)
    spread = (untied.square().cumsum(-1) - untied.cumsum(-1).square() / counts)[..., 1:]
    # Separate sqrt and rsqrt, because the gradient of sqrt(0 / V) is 0 * inf. The margin exceeds the rounding error.
    stretch = (excess.sqrt() * spread.rsqrt()).amax(-1, keepdim=True) * (1.0 + 8.0 * epsilon)

    # Where the largest logits tie, the stretch is huge and its gradient is noise: only the gaps have a gradient.
    push = stretch * untied - gaps
    push = torch.where(gaps[..., 1:2] > -epsilon, push.detach(), push)
    weights = _sorted_sparsemax(torch.where(stretch > 1.0, gaps + push, gaps), counts)
    return torch.zeros_like(logits).scatter(-1, order, weights.to(logits.dtype))


def random_weights(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws weights (size,) uniformly from the simplex, that is from Dirichlet(1, ..., 1)."""
    draws = torch.empty(size).exponential_(generator=generator).clamp(min=torch.finfo(torch.float32).tiny)
    return draws / draws.sum()


def _sorted_sparsemax(ordered: Tensor, counts: Tensor) -> Tensor:
    """Computes sparsemax of logits (..., K) in descending order (Martins and Astudillo, 1602.02068)."""
    support = _find_support(ordered, counts)
    total = torch.where(support, ordered, 0.0).sum(-1, keepdim=True)
    return (ordered - (total - 1.0) / support.sum(-1, keepdim=True)).clamp(min=0.0)


def _find_support(ordered: Tensor, counts: Tensor) -> Tensor:
    """Returns which of the logits (..., K) in descending order have a weight in their sparsemax."""
    return 1.0 + counts * ordered > ordered.cumsum(-1)
