"""Switch layers: one pass over the input takes the statistics of a pool of normalizers, learned weights mix them.

`SwitchNorm1d/2d/3d` mix by softmax; `study.norms.sparse` has the layer that mixes by SparsestMax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from study.norms.kernels.dispatch import normalize, update_running_statistics
from study.norms.mixing import random_weights, softmax
from study.norms.names import DEFAULT_POOL, NORMALIZERS, POOLS
from study.norms.protocol import SwitchWeights


class SwitchNorm(nn.Module):
    """Normalizes by the weighted means and variances of a pool of normalizers (Luo et al., 1806.10779).

        y = weight * (x - sum_k w_k mean_k) / sqrt(sum_k w'_k var_k + eps) + bias

    A pool of one is BN, IN, LN or GN. Statistics are in float32 or better whatever the dtype of x, are computed without
    cancellation, and are defined for one sample and for one pixel (variance 0). y has the dtype and the memory format
    of x.

    Args:
        num_features: number of channels C.
        eps: added to the variance, inside the root.
        momentum: weight of the new batch in running statistics, as in torch.
        pool: the K normalizers to choose from, a non-empty subset of in, ln, bn, gn in this order.
        correction: 0, the paper's formula, uses biased variances; `running_var` is then unbiased, which is torch's
            convention, so that a pool of bn equals `nn.BatchNorm2d` in training, in evaluation and in its buffers.
            1, the official code, uses the variance of in that is unbiased over its pixels and derives the others
            from it; for (N, C), without pixels, every variance is unbiased over the values of its member. `running_var`
            is then the variance that the bn member used.
        chunks: in training, batch statistics are taken over this many consecutive chunks of the batch, and running
            statistics move once, towards the average over chunks, as on that many devices.
        sync: in training, batch statistics are taken over the batches of all ranks of torch.distributed's default
            process group, which must be of one size (SyncSN; in, ln and gn are per sample in any case). In a single
            process it changes nothing; over several ranks the layer runs the reference implementation. Not with chunks.
        groups: number of groups of the gn member; gcd(groups, C) are used, a number that divides C.
        logit_init: `ones` for uniform weights; `random` for weights drawn uniformly from the simplex, separately for
            means and variances.
        trainable: whether the logits require a gradient.
        tied: whether means and variances share their logits.
        generator: source of random logits.

    Parameters are `weight`, `bias` (C,) and the logits `mean_weight`, `var_weight` (K,); buffers, with bn in the pool,
    are `running_mean`, `running_var` (C,).

    Raises:
        ValueError: for an argument that is not allowed, and in `forward` for an input that is not allowed.
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
        if not isinstance(momentum, int | float):
            raise ValueError(
                f"momentum {momentum!r} is not allowed: a number; `average_statistics` averages over batches"
            )
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
            uniform = logit_init == "ones"
            logits = torch.ones(size) if uniform else self._logits_from_weights(random_weights(size, generator))
            return nn.Parameter(logits, requires_grad=trainable)

        self.mean_weight = build_logits()
        self.var_weight = self.mean_weight if tied else build_logits()
        has_bn = "bn" in self.pool
        self.register_buffer("running_mean", torch.zeros(num_features) if has_bn else None)
        self.register_buffer("running_var", torch.ones(num_features) if has_bn else None)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, *spatial) to the same shape; in training, N must be divisible by `chunks`.

        An empty input leaves running statistics unchanged.
        """
        self._check_input(input)
        running = None
        if self.running_mean is not None and self.running_var is not None:
            running = self.running_mean, self.running_var
        switch, softmax = self._switch_inputs()
        y, batch = normalize(
            input,
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
            update_running_statistics(*running, batch, self.momentum)
        return y

    def switch_weights(self) -> SwitchWeights:
        """Returns the weights over the pool, after the mixing rule, detached."""
        with torch.no_grad():
            return SwitchWeights(self.pool, *self._compute_weights())

    @torch.no_grad()
    def fix_weights(self, mean: Tensor, var: Tensor) -> None:
        """Sets the weights (K,) to points of the simplex, such as one-hot or another layer's, and stops training them.

        ValueError if their shape does not fit the pool.
        """
        for logits, weights in ((self.mean_weight, mean), (self.var_weight, var)):
            if weights.shape != logits.shape:
                raise ValueError(f"weights of shape {tuple(weights.shape)} do not fit the pool {self.pool}")
            logits.copy_(self._logits_from_weights(weights))
            logits.requires_grad_(False)

    def freeze(self) -> None:
        """Stops training the weights, at their current values."""
        for logits in (self.mean_weight, self.var_weight):
            logits.requires_grad_(False)

    def extra_repr(self) -> str:
        """Returns the main arguments, in the style of torch's layers."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, pool={','.join(self.pool)}, "
            f"correction={self.correction}, chunks={self.chunks}, sync={self.sync}"
        )

    def _compute_weights(self) -> tuple[Tensor, Tensor]:
        """Applies the mixing rule: weights for means and for variances."""
        return softmax(self.mean_weight), softmax(self.var_weight)

    def _switch_inputs(self) -> tuple[tuple[Tensor, Tensor], bool]:
        """Returns the arguments `switch` and `softmax` of `normalize`: logits and True, or weights and False."""
        return (self.mean_weight, self.var_weight), True

    @staticmethod
    def _logits_from_weights(weights: Tensor) -> Tensor:
        """Inverts the mixing rule; the logit of a weight of 0 is large and negative, but finite."""
        return weights.log().clamp(min=torch.finfo(weights.dtype).min / 2)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in self.input_dims or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} input of shape {tuple(x.shape)} is not allowed: "
                f"{' or '.join(map(str, self.input_dims))} dimensions, {self.num_features} channels"
            )
        if self.training and x.shape[0] % self.chunks:
            raise ValueError(f"a batch of {x.shape[0]} samples is not divisible into {self.chunks} chunks")


class SwitchNorm1d(SwitchNorm):
    """`SwitchNorm` of (N, C) or (N, C, L). Without L, in has nothing to average: the default pool is ln, bn."""

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
