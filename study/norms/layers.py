"""The layer: one core that takes the statistics of a pool in one pass, and the layers that mix them.

`SwitchNorm1d/2d/3d` mix by softmax, `SparseSwitchNorm2d` by SparsestMax; a pool of one is a plain BN, IN, LN or GN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from study.norms.mixing import random_weights, softmax, sparsestmax
from study.norms.names import DEFAULT_POOL, NORMALIZERS, POOLS


class SwitchWeights(NamedTuple):
    """What one layer chooses now: weights (K,) over its pool, for means and for variances, detached."""

    pool: tuple[str, ...]
    mean: Tensor
    var: Tensor


@runtime_checkable
class SwitchLayer(Protocol):
    """A layer that chooses. Whatever has this method is one; its logits are `mean_weight` and `var_weight`."""

    def switch_weights(self) -> SwitchWeights:
        """The weights over the pool."""


class SwitchNorm(nn.Module):
    """Normalizes by a weighted mean and a weighted variance of a pool of normalizers (1811.07727).

        y = weight * (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) + bias

    Statistics are taken in float32 or better whatever the dtype of x, are free of cancellation, and are defined
    for one sample and for one pixel (variance 0). y has the dtype and the memory format of x.

    Args:
        num_features: channels C.
        eps: added to the variance, inside the root.
        momentum: weight of the new batch in running statistics, as in torch.
        pool: normalizers to choose from, a non-empty subset of in, ln, bn, gn in this order; K of them.
        correction: 0 takes biased variances, the paper's formula; `running_var` is then unbiased, as torch keeps
            it, so a pool of bn is `nn.BatchNorm2d` in training, evaluation and buffers. 1 takes the variance of
            in unbiased over its pixels and derives the others from it, as the official code does; `running_var`
            keeps that value.
        chunks: in training, batch statistics are taken over this many consecutive chunks of the batch (ghost
            batches) and running statistics move once, by their mean: the numbers of as many devices.
        groups: groups of the gn member; gcd(groups, C) of them are used, so that they divide C.
        logit_init: logits start at 1 (uniform weights), or such that weights are uniform draws from the simplex,
            separately for means and variances.
        trainable: whether the logits learn.
        tied: whether means and variances share their logits.
        generator: source of random logits.

    Parameters: `weight`, `bias` (C,), logits `mean_weight`, `var_weight` (K,). Buffers, with bn in the pool:
    `running_mean`, `running_var` (C,).

    Raises:
        ValueError: for an argument or an input that is not allowed.
    """

    input_dims: ClassVar[tuple[int, ...]]
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        pool: Sequence[str] = DEFAULT_POOL,
        correction: int = 0,
        chunks: int = 1,
        *,
        groups: int = 32,
        logit_init: Literal["ones", "random"] = "ones",
        trainable: bool = True,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if tuple(pool) not in POOLS:
            raise ValueError(
                f"pool {pool!r} is not allowed: a non-empty subset of {NORMALIZERS}, in this order"
            )
        if correction not in (0, 1):
            raise ValueError(f"correction {correction!r} is not allowed: 0 (biased) or 1 (official code)")
        if logit_init not in ("ones", "random"):
            raise ValueError(f"logit_init {logit_init!r} is not allowed: 'ones' or 'random'")
        if chunks < 1 or groups < 1:
            raise ValueError(f"chunks {chunks} and groups {groups}: at least 1 is allowed")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.pool = tuple(pool)
        self.correction = correction
        self.chunks = chunks
        self.groups = math.gcd(groups, num_features)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        has_bn = "bn" in self.pool
        self.register_buffer("running_mean", torch.zeros(num_features) if has_bn else None)
        self.register_buffer("running_var", torch.ones(num_features) if has_bn else None)

        def build_logits() -> nn.Parameter:
            size = len(self.pool)
            random = logit_init == "random"
            logits = self._logits(random_weights(size, generator)) if random else torch.ones(size)
            return nn.Parameter(logits, requires_grad=trainable)

        self.mean_weight = build_logits()
        self.var_weight = self.mean_weight if tied else build_logits()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial); N must be divisible by `chunks` in training."""
        self._check(x)
        stored = None
        if not self.training and self.running_mean is not None and self.running_var is not None:
            stored = self.running_mean, self.running_var
        y, batch = normalize(
            x,
            self._mix(),
            (self.weight, self.bias),
            stored,
            pool=self.pool,
            groups=self.groups if "gn" in self.pool else 1,
            chunks=self.chunks if self.training else 1,
            correction=self.correction,
            eps=self.eps,
        )
        if batch is not None:
            self._track(*batch, count=x.numel() // (self.num_features * self.chunks))
        return y

    def switch_weights(self) -> SwitchWeights:
        """The weights over the pool, after the mixing rule, detached."""
        with torch.no_grad():
            return SwitchWeights(self.pool, *self._mix())

    @torch.no_grad()
    def fix_weights(self, mean: Tensor, var: Tensor) -> None:
        """Pins the weights to given ones (K,) on the simplex, one-hot or transplanted: logits learn no more."""
        for logits, weights in ((self.mean_weight, mean), (self.var_weight, var)):
            if weights.shape != logits.shape:
                raise ValueError(f"weights of shape {tuple(weights.shape)} for the pool {self.pool}")
            logits.copy_(self._logits(weights))
            logits.requires_grad_(False)

    def extra_repr(self) -> str:
        """The arguments that matter, as torch prints them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, pool={','.join(self.pool)}, "
            f"correction={self.correction}, chunks={self.chunks}"
        )

    def _mix(self) -> tuple[Tensor, Tensor]:
        """Weights for means and for variances."""
        return softmax(self.mean_weight), softmax(self.var_weight)

    @staticmethod
    def _logits(weights: Tensor) -> Tensor:
        """Logits that the mixing rule turns into `weights`."""
        return weights.log()

    def _check(self, x: Tensor) -> None:
        if x.dim() not in self.input_dims or x.shape[1] != self.num_features:
            dims = " or ".join(str(dim) for dim in self.input_dims)
            raise ValueError(
                f"{type(self).__name__} input of shape {tuple(x.shape)} is not allowed: "
                f"{dims} dimensions, the second of size {self.num_features}"
            )
        if self.training and x.shape[0] % self.chunks:
            raise ValueError(f"a batch of {x.shape[0]} samples is not divisible into {self.chunks} chunks")

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves running statistics towards those of a batch, taken over `count` values."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.correction == 0 and count > 1:
            var = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)


class SwitchNorm1d(SwitchNorm):
    """`SwitchNorm` of (N, C) or (N, C, L); in has nothing to average over without L, so the pool is ln, bn."""

    input_dims = (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        pool: Sequence[str] = ("ln", "bn"),
        correction: int = 0,
        chunks: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, pool, correction, chunks, **options)


class SwitchNorm2d(SwitchNorm):
    """`SwitchNorm` of (N, C, H, W)."""

    input_dims = (4,)


class SwitchNorm3d(SwitchNorm):
    """`SwitchNorm` of (N, C, D, H, W)."""

    input_dims = (5,)


class SparseSwitchNorm2d(SwitchNorm):
    """Sparse Switchable Normalization of (N, C, H, W) (1903.03793): weights by `sparsestmax`, one-hot in the end.

    Arguments as `SwitchNorm2d`. Buffers besides: `radius` (), where training stands, and `mean_fixed`,
    `var_fixed` (), whether the choice is made. `set_radius` moves them before each step.
    """

    input_dims = (4,)
    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor

    def __init__(self, num_features: int, *args: Any, **options: Any) -> None:
        super().__init__(num_features, *args, **options)
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("mean_fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("var_fixed", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def set_radius(self, radius: float) -> None:
        """Sets the radius; weights that are one-hot are fixed, and their logits set (back) to them."""
        self.radius.fill_(radius)
        for logits, fixed, weights in zip(
            (self.mean_weight, self.var_weight), (self.mean_fixed, self.var_fixed), self._mix(), strict=True
        ):
            fixed.logical_or_(weights.amax() >= 1.0)
            logits.copy_(torch.where(fixed, weights, logits))

    def _mix(self) -> tuple[Tensor, Tensor]:
        # At radius 1, beyond any circumradius, weights are the one-hot of the largest logit, without gradient.
        radius = torch.where(torch.stack((self.mean_fixed, self.var_fixed)), 1.0, self.radius)
        mean, var = sparsestmax(torch.stack((self.mean_weight, self.var_weight)), radius).unbind()
        return mean, var

    @staticmethod
    def _logits(weights: Tensor) -> Tensor:
        return weights


def set_radius(model: nn.Module, radius: float) -> None:
    """Sets the radius of every sparse layer of `model`; to be called before each step with step / total steps.

    The radius grows from 0 to 1 over training, so every layer is one-hot after sqrt(1 - 1/K) of it at the latest
    (81.65 % for a pool of three). Means and variances are fixed independently, as soon as their weights are
    one-hot. ValueError if `radius` is negative.
    """
    if not radius >= 0.0:
        raise ValueError(f"radius {radius} is not allowed: at least 0")
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm2d):
            module.set_radius(radius)


# Statistics of (N, C) moments, seen as (chunks, samples, groups, channels of a group), are averages over axes.
_AXES = {"ln": (2, 3), "bn": (1,), "gn": (3,)}


def normalize(
    x: Tensor,
    switch: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor],
    stored: tuple[Tensor, Tensor] | None,
    *,
    pool: tuple[str, ...],
    groups: int,
    chunks: int,
    correction: int,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Normalizes x (N, C, *spatial) by the mixed statistics of `pool`.

    switch: weights (K,) for means and for variances. affine: gamma and beta (C,). stored: the mean and variance
    (C,) of the bn member; None takes the batch's.

    Returns y, and where the bn member took the batch's statistics their mean over chunks, (C,) each, detached.
    """
    batch, channels = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    grid = (chunks, batch // chunks, groups, channels // groups)
    column = (batch, channels, *[1] * (x.dim() - 2))

    # The one pass over x. Everything below it up to the last line is on N x C numbers.
    mean, var, centered = _moments(x.to(torch.promote_types(x.dtype, torch.float32)), range(2, x.dim()))
    mean, var = mean.reshape(grid), var.reshape(grid)
    if correction and pixels > 1:
        var = var * (pixels / (pixels - 1))

    members = {"in": (mean, var)}
    for name in pool:
        if name == "bn" and stored is not None:
            members[name] = stored[0].view(grid[2:]), stored[1].view(grid[2:])
        elif name != "in":
            # Var over a larger set = mean of variances + variance of means: no difference of large numbers.
            center, spread, _ = _moments(mean, _AXES[name])
            members[name] = center, var.mean(_AXES[name], keepdim=True) + spread
    mixed_mean = _weigh(switch[0], [members[name][0] for name in pool])
    mixed_var = _weigh(switch[1], [members[name][1] for name in pool])

    # x is centred before it is scaled, and only then shifted: accurate where |mean| >> std.
    gamma, beta = (parameter.view(grid[2:]) for parameter in affine)
    scale = gamma * (mixed_var + eps).rsqrt()
    shift = torch.addcmul(beta, mean - mixed_mean, scale)
    y = torch.addcmul(shift.reshape(column), centered, scale.expand(grid).reshape(column)).to(x.dtype)

    if stored is not None or "bn" not in pool:
        return y, None
    center, spread = (statistic.detach().mean(0).reshape(channels) for statistic in members["bn"])
    return y, (center, spread)


def _moments(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of x over `axes`, kept as size 1, and x less its mean."""
    if not axes:  # torch reads no axes as all axes
        return x, torch.zeros_like(x), torch.zeros_like(x)
    mean = x.mean(tuple(axes), keepdim=True)
    centered = x - mean
    return mean, centered.square().mean(tuple(axes), keepdim=True), centered


def _weigh(weights: Tensor, members: list[Tensor]) -> Tensor:
    """The weighted sum of `members`, which broadcast against each other."""
    first, *others = weights.unbind()
    total = first * members[0]
    for weight, member in zip(others, members[1:], strict=True):
        total = torch.addcmul(total, weight, member)
    return total
