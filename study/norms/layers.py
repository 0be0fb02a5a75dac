"""Switch layers: one core takes the statistics of a pool in one pass and mixes them.

`SwitchNorm1d/2d/3d` mix by softmax, `SparseSwitchNorm2d` by SparsestMax. A pool of one is BN, IN, LN or GN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from study.norms.kernels.dispatch import fix_choice, normalize, sparse_switch, track
from study.norms.mixing import random_weights, softmax
from study.norms.names import DEFAULT_POOL, NORMALIZERS, POOLS


class SwitchWeights(NamedTuple):
    """What one layer chooses now: weights (K,) over its pool, for means and for variances, detached."""

    pool: tuple[str, ...]
    mean: Tensor
    var: Tensor


@runtime_checkable
class SwitchLayer(Protocol):
    """A layer that chooses: whatever has this method, and logits `mean_weight` and `var_weight`."""

    def switch_weights(self) -> SwitchWeights:
        """The weights over the pool, after the mixing rule."""


class SwitchNorm(nn.Module):
    """Normalizes by the weighted means and variances of a pool of normalizers (Luo et al., 1806.10779).

        y = weight * (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) + bias

    Statistics are in float32 or better whatever the dtype of x, free of cancellation, and defined for one
    sample and for one pixel (variance 0). y has the dtype and the memory format of x.

    Args:
        num_features: channels C.
        eps: added to the variance, inside the root.
        momentum: weight of the new batch in running statistics, as in torch.
        pool: the K normalizers to choose from, a non-empty subset of in, ln, bn, gn in this order.
        correction: 0, the paper's formula, takes biased variances; `running_var` is then unbiased, which is
            torch's convention, so that a pool of bn is `nn.BatchNorm2d` in training, evaluation and buffers.
            1, the official code, takes the variance of in unbiased over its pixels and derives the others
            from it; `running_var` is then what the bn member used.
        chunks: in training, batch statistics are taken over this many consecutive chunks of the batch, and
            running statistics move once, by their average: what as many devices would do.
        sync: in training, batch statistics are taken over the batches of all ranks of torch.distributed's default
            process group, which are of one size (SyncSN; in, ln and gn are per sample anyway). With one process it
            changes nothing; with several the layer runs its plain form. Not with chunks.
        groups: of the gn member; gcd(groups, C) are used, a number that divides C.
        logit_init: `ones` for uniform weights; `random` for weights drawn uniformly from the simplex,
            separately for means and variances.
        trainable: whether logits learn.
        tied: whether means and variances share their logits.
        generator: for random logits.

    Parameters are `weight`, `bias` (C,) and the logits `mean_weight`, `var_weight` (K,); buffers, with bn in
    the pool, `running_mean`, `running_var` (C,).

    Raises:
        ValueError: for an argument, or in `forward` an input, that is not allowed.
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
        sync: bool = False,
        groups: int = 32,
        logit_init: Literal["ones", "random"] = "ones",
        trainable: bool = True,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if tuple(pool) not in POOLS:
            raise ValueError(f"pool {pool!r} is not allowed: a non-empty subset of {NORMALIZERS}, in order")
        if correction not in (0, 1):
            raise ValueError(f"correction {correction!r} is not allowed: 0 (paper) or 1 (official code)")
        if logit_init not in ("ones", "random"):
            raise ValueError(f"logit_init {logit_init!r} is not allowed: 'ones' or 'random'")
        if chunks < 1 or groups < 1:
            raise ValueError(f"chunks {chunks} and groups {groups} are not allowed: at least 1")
        if sync and chunks > 1:
            raise ValueError(f"chunks {chunks} is not allowed with sync: 1, statistics are over the whole batch")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.pool = tuple(pool)
        self.correction = correction
        self.chunks = chunks
        self.sync = sync
        self.groups = math.gcd(groups, num_features)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

        def build_logits() -> nn.Parameter:
            size = len(self.pool)
            ones = logit_init == "ones"
            logits = torch.ones(size) if ones else self._invert(random_weights(size, generator))
            return nn.Parameter(logits, requires_grad=trainable)

        self.mean_weight = build_logits()
        self.var_weight = self.mean_weight if tied else build_logits()
        has_bn = "bn" in self.pool
        self.register_buffer("running_mean", torch.zeros(num_features) if has_bn else None)
        self.register_buffer("running_var", torch.ones(num_features) if has_bn else None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, *spatial) to the same shape; in training, N must be divisible by `chunks`."""
        self._check(x)
        running = None
        if self.running_mean is not None and self.running_var is not None:
            running = self.running_mean, self.running_var
        switch, softmax = self._switch()
        y, batch = normalize(
            x,
            switch,
            (self.weight, self.bias),
            None if self.training else running,
            softmax=softmax,
            pool=self.pool,
            groups=self.groups if "gn" in self.pool else 1,
            chunks=self.chunks if self.training else 1,
            correction=self.correction,
            eps=self.eps,
            sync=self.sync and self.training,
        )
        if batch is not None and running is not None:
            track(*running, batch, self.momentum)
        return y

    def switch_weights(self) -> SwitchWeights:
        """The weights over the pool, after the mixing rule, detached."""
        with torch.no_grad():
            return SwitchWeights(self.pool, *self._mix())

    @torch.no_grad()
    def fix_weights(self, mean: Tensor, var: Tensor) -> None:
        """Fixes the weights (K,) at points of the simplex, one-hot or transplanted; logits learn no more."""
        for logits, weights in ((self.mean_weight, mean), (self.var_weight, var)):
            if weights.shape != logits.shape:
                raise ValueError(f"weights of shape {tuple(weights.shape)} do not fit the pool {self.pool}")
            logits.copy_(self._invert(weights))
            logits.requires_grad_(False)

    def freeze(self) -> None:
        """Fixes the weights as they are."""
        for logits in (self.mean_weight, self.var_weight):
            logits.requires_grad_(False)

    def extra_repr(self) -> str:
        """The arguments that matter, as torch prints them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, pool={','.join(self.pool)}, "
            f"correction={self.correction}, chunks={self.chunks}, sync={self.sync}"
        )

    def _mix(self) -> tuple[Tensor, Tensor]:
        """The mixing rule: weights for means and for variances."""
        return softmax(self.mean_weight), softmax(self.var_weight)

    def _switch(self) -> tuple[tuple[Tensor, Tensor], bool]:
        """What `normalize` gets: logits, and that it is to take their softmax, or weights."""
        return (self.mean_weight, self.var_weight), True

    @staticmethod
    def _invert(weights: Tensor) -> Tensor:
        """Logits that the mixing rule turns into `weights`: of a weight of 0, one that is finite as a parameter is."""
        return weights.log().clamp(min=torch.finfo(weights.dtype).min / 2)

    def _check(self, x: Tensor) -> None:
        if x.dim() not in self.input_dims or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} input of shape {tuple(x.shape)} is not allowed: "
                f"{' or '.join(map(str, self.input_dims))} dimensions, {self.num_features} channels"
            )
        if self.training and x.shape[0] % self.chunks:
            raise ValueError(f"a batch of {x.shape[0]} samples is not divisible into {self.chunks} chunks")


class SwitchNorm1d(SwitchNorm):
    """`SwitchNorm` of (N, C) or (N, C, L). Without L, in has nothing to average: the pool is ln, bn."""

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
    """`SwitchNorm` of (N, C, H, W) with sparse weights, one-hot in the end (Shao et al., 1903.03793).

    Its mixing rule is `sparsestmax`. Further buffers: the scalar `radius`; whether the choice is made, the scalars
    `mean_fixed` and `var_fixed`, and which, `mean_choice` and `var_choice` (K,). `set_radius` fixes one-hot ones.
    """

    input_dims = (4,)
    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor
    mean_choice: Tensor
    var_choice: Tensor

    def __init__(self, num_features: int, *args: Any, **options: Any) -> None:
        super().__init__(num_features, *args, **options)
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("mean_fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("var_fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean_choice", torch.zeros(len(self.pool)))
        self.register_buffer("var_choice", torch.zeros(len(self.pool)))

    @torch.no_grad()
    def set_radius(self, radius: float) -> None:
        """Sets the radius, fixes weights that are one-hot, and puts the logits of fixed ones back on them."""
        self.radius.fill_(radius)
        fix_choice(self.mean_weight, self.radius, self.mean_fixed, self.mean_choice)
        fix_choice(self.var_weight, self.radius, self.var_fixed, self.var_choice)

    @torch.no_grad()
    def unfreeze(self) -> None:
        """Lets a choice that was made be made again: nothing is fixed, the radius is 0, and logits learn.

        At one-hot weights no logit has a gradient. They move halfway to the centre of the simplex, where the member
        that was chosen still leads and every member has a weight and a gradient: (2/3, 1/6, 1/6) in a pool of three.
        Weights that are not one-hot are what their logits say at radius 0. A solver's state of old logits is stale.
        """
        for logits, weights in zip((self.mean_weight, self.var_weight), self._mix(), strict=True):
            if weights.amax() >= 1.0:
                logits.copy_((weights + 1 / len(self.pool)) / 2)
            logits.requires_grad_(True)
        for state in (self.radius, self.mean_fixed, self.var_fixed, self.mean_choice, self.var_choice):
            state.zero_()

    def fix_weights(self, mean: Tensor, var: Tensor) -> None:
        """As `SwitchNorm.fix_weights`, whatever the radius becomes."""
        super().fix_weights(mean, var)
        self.mean_choice.copy_(mean)
        self.var_choice.copy_(var)
        self.mean_fixed.fill_(True)
        self.var_fixed.fill_(True)

    def freeze(self) -> None:
        """Fixes the weights as they are, whatever the radius becomes."""
        self.fix_weights(*self.switch_weights()[1:])

    def _mix(self) -> tuple[Tensor, Tensor]:
        # A choice that is fixed is kept apart from its logits: the solver's momentum goes on moving those.
        return (
            sparse_switch(self.mean_weight, self.radius, self.mean_fixed, self.mean_choice),
            sparse_switch(self.var_weight, self.radius, self.var_fixed, self.var_choice),
        )

    def _switch(self) -> tuple[tuple[Tensor, Tensor], bool]:
        return self._mix(), False

    @staticmethod
    def _invert(weights: Tensor) -> Tensor:
        return weights


def set_radius(model: nn.Module, radius: float) -> None:
    """Sets the radius of all sparse layers of `model`, to be called before each step with step / total steps.

    Weights are then one-hot from sqrt(1 - 1/K) of training on, 81.65 % for a pool of three, if not before.
    Once one-hot, weights for means or for variances are fixed; nothing moves them any more.

    ValueError if `radius` is negative.
    """
    if not radius >= 0.0:
        raise ValueError(f"radius {radius} is not allowed: at least 0")
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm2d):
            module.set_radius(radius)


def unfreeze_switches(model: nn.Module) -> None:
    """Thaws all sparse layers of `model`: to be called before a solver is built; `set_radius` fixes them again."""
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm2d):
            module.unfreeze()
