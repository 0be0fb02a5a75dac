"""Initialization as a factor of the study: the weights of every convolution, from one generator a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from study.config import derive_seed

# fan_out, as the recipe of the SN paper: N(0, sqrt(2 / (k k C_out))).
_SCHEMES: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "he_normal": lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "he_uniform": lambda w, g: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "xavier_normal": lambda w, g: nn.init.xavier_normal_(w, generator=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    "orthogonal": lambda w, g: nn.init.orthogonal_(w, gain=math.sqrt(2), generator=g),
}


@torch.no_grad()
def initialize(network: nn.Module, scheme: str, seed: int, *, zero_last_gamma: bool) -> None:
    """Draws every convolution by `scheme` and every linear layer by torch's default, in place.

    Each parameter has its own generator, seeded by (seed, name): a network's convolutions do not depend on what its
    norms draw. With `zero_last_gamma` the last norm of every residual branch starts at 0 (Goyal et al., 2017), so
    that a block starts as the identity.
    """
    draw = _SCHEMES[scheme]
    linear = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            draw(module.weight, _generator(seed, name, "weight"))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in ("weight", "bias"):  # by position: dropout before the classifier changes its name
                generator = _generator(seed, f"linear{linear}", parameter)
                getattr(module, parameter).uniform_(-bound, bound, generator=generator)
            linear += 1
        elif zero_last_gamma and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif zero_last_gamma and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def _generator(seed: int, *name: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("init", seed, *name))
