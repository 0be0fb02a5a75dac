"""The sparse switch layer, and the schedule that makes its weights one-hot during training."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from study.norms.kernels.dispatch import fix_choice, sparse_switch
from study.norms.layers import SwitchNorm
from study.norms.mixing import Centre


class SparseSwitchNorm2d(SwitchNorm):
    """`SwitchNorm` of (N, C, H, W) with sparse weights, one-hot at the end of training (Shao et al., 1903.03793).

    Its mixing rule is `sparsestmax`. `set_radius` fixes weights that are one-hot. Further buffers: the scalars `radius`
    and `mean_fixed`, `var_fixed` (whether weights are fixed), and `mean_choice`, `var_choice` (K,), the fixed weights.

    Args:
        centre: where the radius is measured from, see `sparsestmax`: `simplex`, or `support`, as in the last version of
            the authors' code. The two differ only where sparsemax drops a member before the weights are fixed.
        args, options: those of `SwitchNorm`.
    """

    input_dims = (4,)
    centre: Centre = "simplex"  # of layers that were pickled before there was another one
    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor
    mean_choice: Tensor
    var_choice: Tensor

    def __init__(self, num_features: int, *args: Any, centre: Centre = "simplex", **options: Any) -> None:
        super().__init__(num_features, *args, **options)
        if centre not in get_args(Centre):
            raise ValueError(f"centre {centre!r} is not allowed: 'simplex' or 'support'")
        self.centre = centre
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("mean_fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("var_fixed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean_choice", torch.zeros(len(self.pool)))
        self.register_buffer("var_choice", torch.zeros(len(self.pool)))

    @torch.no_grad()
    def set_radius(self, radius: float) -> None:
        """Sets the radius, fixes weights that are one-hot, and resets the logits of fixed weights to these weights."""
        self.radius.fill_(radius)
        fix_choice(self.mean_weight, self.radius, self.mean_fixed, self.mean_choice, self.centre)
        fix_choice(self.var_weight, self.radius, self.var_fixed, self.var_choice, self.centre)

    @torch.no_grad()
    def unfreeze(self) -> None:
        """Makes fixed weights trainable again, and sets the radius to 0.

        At one-hot weights no logit has a gradient. Such logits move halfway to the centre of the simplex, where the
        chosen member still has the largest weight and every member has a weight and a gradient: (2/3, 1/6, 1/6) in a
        pool of three. Other logits keep their values. The optimizer's state for these logits becomes invalid.
        """
        for logits, weights in zip((self.mean_weight, self.var_weight), self._compute_weights(), strict=True):
            if weights.amax() >= 1.0:
                logits.copy_((weights + 1 / len(self.pool)) / 2)
            logits.requires_grad_(True)
        for state in (self.radius, self.mean_fixed, self.var_fixed, self.mean_choice, self.var_choice):
            state.zero_()

    def fix_weights(self, mean: Tensor, var: Tensor) -> None:
        """Does what `SwitchNorm.fix_weights` does; later radii have no effect."""
        super().fix_weights(mean, var)
        self.mean_choice.copy_(mean)
        self.var_choice.copy_(var)
        self.mean_fixed.fill_(True)
        self.var_fixed.fill_(True)

    def freeze(self) -> None:
        """Stops training the weights, at their current values; later radii have no effect."""
        self.fix_weights(*self.switch_weights()[1:])

    def extra_repr(self) -> str:
        """Returns the main arguments, in the style of torch's layers."""
        return f"{super().extra_repr()}, centre={self.centre}"

    def _compute_weights(self) -> tuple[Tensor, Tensor]:
        # Fixed weights are buffers of their own, because the optimizer's momentum still moves the logits.
        return (
            sparse_switch(self.mean_weight, self.radius, self.mean_fixed, self.mean_choice, self.centre),
            sparse_switch(self.var_weight, self.radius, self.var_fixed, self.var_choice, self.centre),
        )

    def _switch_inputs(self) -> tuple[tuple[Tensor, Tensor], bool]:
        return self._compute_weights(), False

    @staticmethod
    def _logits_from_weights(weights: Tensor) -> Tensor:
        return weights


def set_radius(model: nn.Module, radius: float) -> None:
    """Sets the radius of all sparse layers of `model`. Call it before each step, with step / total steps.

    Weights are then one-hot from sqrt(1 - 1/K) of training on at the latest, 81.65 % for a pool of three. Once they are
    one-hot, the weights for means or for variances are fixed, and no later step changes them.

    ValueError if `radius` is negative.
    """
    if not radius >= 0.0:
        raise ValueError(f"radius {radius} is not allowed: at least 0")
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm2d):
            module.set_radius(radius)


def unfreeze_switches(model: nn.Module) -> None:
    """Makes fixed weights of all sparse layers of `model` trainable again. Call it before building an optimizer."""
    for module in model.modules():
        if isinstance(module, SparseSwitchNorm2d):
            module.unfreeze()
