"""Builds the optimizer and the learning-rate schedule of a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn, optim

from study.config.schema import TrialConfig
from study.models.geometry import is_norm
from study.norms import switch_parameters

POLY_POWER = 0.9


def build_optimizer(network: nn.Module, config: TrialConfig) -> optim.Optimizer:
    """Builds the optimizer, with the switch logits in a parameter group of their own.

    The logits have their own learning rate (a multiple of the base rate) and their own weight decay, because decay
    would pull the switch weights to uniform and bias what is measured. All other parameters share one group, as in the
    recipe of the SN authors, unless the configuration has other values for norms or biases.
    """
    logits = switch_parameters(network)
    rate, decay = config.base_learning_rate, config.weight_decay
    norms, biases, weights = _split_parameters(network, {id(parameter) for parameter in logits})
    norm_decay = decay if config.norm_weight_decay is None else config.norm_weight_decay
    bias_decay = decay if config.bias_weight_decay is None else config.bias_weight_decay
    if norm_decay == bias_decay == decay and config.bias_learning_rate == 1:  # fewer groups need fewer calls
        chosen = {id(parameter) for parameter in logits}
        weights = [p for p in network.parameters() if p.requires_grad and id(p) not in chosen]
        norms, biases = [], []
    groups: list[dict[str, object]] = [
        {"params": parameters, "lr": rate * multiple, "weight_decay": group_decay}
        for parameters, multiple, group_decay in (
            (weights, 1.0, decay),
            (norms, 1.0, norm_decay),
            (biases, config.bias_learning_rate, bias_decay),
            (logits, config.logit_learning_rate, config.logit_weight_decay),
        )
        if parameters
    ]
    return _SOLVERS[config.solver](groups, config.momentum)


def _split_parameters(network: nn.Module, logits: set[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Trainable parameters without the logits, given by id: gammas and betas of norms, other biases, and weights."""
    norms: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}
    weights: dict[int, Tensor] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in logits:
                kind = norms if is_norm(module) else biases if name == "bias" else weights
                kind[id(parameter)] = parameter
    return list(norms.values()), list(biases.values()), list(weights.values())


# The fused forms make one call for all parameters: in small networks, calls cost more than the arithmetic.
_SOLVERS: dict[str, Callable[[list[dict[str, object]], float], optim.Optimizer]] = {
    "sgd": lambda groups, momentum: optim.SGD(groups, lr=0.0, momentum=momentum, fused=True),
    "nesterov": lambda groups, momentum: optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=True, fused=True),
    "adam": lambda groups, momentum: optim.Adam(groups, lr=0.0, betas=(momentum, 0.999), fused=True),
    "adamw": lambda groups, momentum: optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True),
    "rmsprop": lambda groups, momentum: optim.RMSprop(groups, lr=0.0, momentum=momentum, foreach=True),
}


def build_schedule(
    optimizer: optim.Optimizer, config: TrialConfig, steps_per_epoch: int
) -> optim.lr_scheduler.LambdaLR:
    """Builds the schedule: every optimizer step multiplies the rates of all parameter groups by the same factor."""
    factor = partial(
        learning_rate_factor,
        decay=config.decay,
        total=config.epochs * steps_per_epoch,
        warmup=config.warmup_epochs * steps_per_epoch,
        milestones=tuple(config.decay_milestones),
        start=config.warmup_start,
    )
    return optim.lr_scheduler.LambdaLR(optimizer, factor)


def learning_rate_factor(
    step: int,
    *,
    decay: str,
    total: int,
    warmup: float,
    milestones: Sequence[float] = (0.3, 0.6, 0.9),
    start: float = 0.0,
) -> float:
    """The learning rate at `step` (from 0) as a fraction of the base rate: a linear warm-up, then the decay.

    A warm-up of w steps rises from `start`, and the first step after it has 1; with `start` 0, the first step has
    1 / (w + 1). Step decay divides by 10 at each of the `milestones`, fractions of the whole training; the other kinds
    of decay begin when the warm-up ends.
    """
    if step < warmup and start == 0:
        return (step + 1) / (math.floor(warmup) + 1)
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    if decay == "step":
        return float(0.1 ** sum(step >= round(milestone * total) for milestone in milestones))
    if decay == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if decay == "poly":
        return float((1 - progress) ** POLY_POWER)
    if decay == "linear":
        return 1 - progress
    assert decay == "constant", decay
    return 1.0
