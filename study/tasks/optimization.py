"""Solvers and learning-rate decay, both factors of the study."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn, optim

from study.config import TrialConfig
from study.norms import switch_parameters

STEP_DECAY = (0.3, 0.6, 0.9)  # of the epochs, a factor of 10 each: 30, 60 and 90 of the paper's 100
POLY_POWER = 0.9


def build_optimizer(network: nn.Module, config: TrialConfig) -> optim.Optimizer:
    """The solver, with the switch logits in a parameter group of their own.

    The logits have their own learning rate (a multiple of the base's) and weight decay: decay would pull them to
    uniform and bias what is measured. All other parameters, gamma and beta too, share one group, as the SN recipe.
    """
    logits = switch_parameters(network)
    chosen = {id(parameter) for parameter in logits}
    rest = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in chosen]
    rate = config.base_learning_rate
    groups = [{"params": rest, "lr": rate, "weight_decay": config.weight_decay}]
    if logits:
        groups.append(
            {"params": logits, "lr": rate * config.logit_learning_rate, "weight_decay": config.logit_weight_decay}
        )
    return _SOLVERS[config.solver](groups, config.momentum)


# The fused forms make one call of all parameters: on small networks the calls cost more than the arithmetic.
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
    """Decay by optimizer steps, the same factor for every parameter group."""
    factor = partial(
        learning_rate_factor,
        decay=config.decay,
        total=config.epochs * steps_per_epoch,
        warmup=config.warmup_epochs * steps_per_epoch,
    )
    return optim.lr_scheduler.LambdaLR(optimizer, factor)


def learning_rate_factor(step: int, *, decay: str, total: int, warmup: float) -> float:
    """The learning rate at `step` (from 0) as a fraction of its base: a linear warm-up, then the decay.

    Of a warm-up of w steps the first has 1 / (w + 1), and the first step after it 1. Step decay counts from the start
    of training, the others from the end of the warm-up.
    """
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    if decay == "step":
        return float(0.1 ** sum(step >= part * total for part in STEP_DECAY))
    if decay == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if decay == "poly":
        return float((1 - progress) ** POLY_POWER)
    if decay == "linear":
        return 1 - progress
    assert decay == "constant", decay
    return 1.0
