"""Re-estimates the running statistics of a trained model from a number of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from study.norms.kernels.sync import count_ranks

Variance = Literal["within", "total"]


@torch.no_grad()
def average_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
    *,
    variance: Variance = "within",
) -> None:
    """Sets running statistics to those of `batches`, in place: the "batch average" of the SN paper.

    variance:
        `within`: means and variances are plain averages over the batches. This is the variance by which the layers
        divide in training, and what moving averages estimate, so evaluation and training have the same scale. It leaves
        out how much the means of batches differ, which for batches of 2 images is a quarter of the variance or more.
        `total`: mean and variance of all values, as if the batches (over several ranks, those of all ranks) were one.
        This is the rule of the SN authors' code, which accumulates first and second moments.

    `forward(model, batch)` runs one batch, by default `model(batch)`. Only layers with running statistics are in
    training mode meanwhile, so dropout is off. Parameters, modes and momenta do not change. A layer that runs several
    times per batch averages over all of its runs; a layer with a true attribute `frozen` keeps its statistics, as does
    a layer whose inputs are all empty.

    `total` is a collective: every rank of torch.distributed's default process group must call it.

    ValueError if the model has running statistics but `batches` is empty.
    """
    if variance not in get_args(Variance):
        raise ValueError(f"variance {variance!r} is not allowed: 'within' or 'total'")
    layers: list[Any] = [module for module in model.modules() if _updates_statistics(module)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    averages = [(_AverageWithin if variance == "within" else _AverageTotal)(layer) for layer in layers]
    hooks = [
        layer.register_forward_pre_hook(average.add, with_kwargs=True)
        for layer, average in zip(layers, averages, strict=True)
    ]
    momenta = [(layer, layer.momentum) for layer in layers]
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
    if not any(average.runs for average in averages):
        raise ValueError("batches is empty: averaging statistics takes at least one")
    for average in averages:
        average.finish()


class _AverageWithin:
    """Averages means and variances over batches, by the momentum of the layer's own updates."""

    def __init__(self, _: Any) -> None:
        self.runs = 0

    def add(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (x,) = (*args, *kwargs.values())
        if not x.numel():  # the head of a detector without any region
            return
        if not self.runs:  # a momentum of 1 does not remove a NaN
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
        self.runs += 1
        layer.momentum = 1.0 / self.runs

    def finish(self) -> None:
        """The layer has the averages already."""


class _AverageTotal:
    """Sums values and squares of all batches, from the moments of rows. In float64, so that no digits are lost."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.runs = 0
        self.unbiased_rows = False
        size = 3, layer.running_mean.numel()  # numbers of values, their sums, sums of squares
        self.sums = layer.running_mean.new_zeros(size, dtype=torch.float64)

    def add(self, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (x,) = (*args, *kwargs.values())
        rows = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
        if not rows.numel():
            return
        self.runs += 1
        pixels = rows.shape[2]
        self.unbiased_rows = bool(getattr(layer, "correction", 0)) and x.dim() > 2
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        mean = rows.mean(2, keepdim=True)
        var = (rows - mean).square().mean(2).double()
        if self.unbiased_rows and pixels > 1:
            var *= pixels / (pixels - 1)
        mean = mean.squeeze(2).double()
        self.sums += pixels * torch.stack((torch.ones_like(mean), mean, var + mean.square())).sum(1)

    def finish(self) -> None:
        """Sets the layer's running statistics: a variance of unbiased variances (`correction`), or an unbiased one."""
        if count_ranks() > 1:
            dist.all_reduce(self.sums)
        count, values, squares = self.sums
        if not count[0]:
            return
        mean = values / count
        var = squares / count - mean.square()
        if not self.unbiased_rows:
            var *= count / (count - 1).clamp(min=1.0)
        self.layer.running_mean.copy_(mean)
        self.layer.running_var.copy_(var)


def _updates_statistics(module: nn.Module) -> bool:
    # torchvision's FrozenBatchNorm2d has running statistics but no momentum: it never updates them.
    names = ("running_mean", "running_var")
    has_statistics = all(isinstance(getattr(module, name, None), Tensor) for name in names)
    is_kept = getattr(module, "frozen", False) or not getattr(module, "track_running_stats", True)
    return has_statistics and hasattr(module, "momentum") and not is_kept
