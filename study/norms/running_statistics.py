"""Re-estimates the running statistics of a trained model from a number of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def average_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> None:
    """Sets running statistics to the plain average of the statistics of `batches`, in place.

    This is the "batch average" of the SN authors. `forward(model, batch)` runs one batch, by default `model(batch)`.
    Only layers with running statistics are in training mode meanwhile, so dropout is off. Parameters, modes and momenta
    do not change. A layer that runs several times per batch averages over all of its runs; a layer with a true
    attribute `frozen` keeps its statistics.

    ValueError if the model has running statistics but `batches` is empty.
    """
    layers: list[Any] = [module for module in model.modules() if _updates_statistics(module)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    runs: Counter[nn.Module] = Counter()

    def set_averaging_momentum(layer: Any, inputs: Any) -> None:
        if not inputs[0].numel():  # the head of a detector without any region
            return
        if layer not in runs:  # a momentum of 1 does not remove a NaN
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
        runs[layer] += 1
        layer.momentum = 1.0 / runs[layer]

    hooks = [layer.register_forward_pre_hook(set_averaging_momentum) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.train()
        with torch.compiler.set_stance("force_eager"):  # compiled code would not run the hooks
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta:
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if not runs:
        raise ValueError("batches is empty: averaging statistics takes at least one")


def _updates_statistics(module: nn.Module) -> bool:
    # torchvision's FrozenBatchNorm2d has running statistics but no momentum: it never updates them.
    has_statistics = isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "momentum")
    return has_statistics and not getattr(module, "frozen", False)
