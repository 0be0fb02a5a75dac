"""Initialization as a factor of the study: the weights of every convolution, from one generator a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from study.config.seeds import derive_seed
from study.models.geometry import backbone_path

CLASSIFIER = ("fc", "fc.1")  # of images, without and with dropout before it

# fan_out, as the recipe of the SN paper: N(0, sqrt(2 / (k k C_out))).
_SCHEMES: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "he_normal": lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "he_uniform": lambda w, g: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "xavier_normal": lambda w, g: nn.init.xavier_normal_(w, generator=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    "orthogonal": lambda w, g: nn.init.orthogonal_(w, gain=math.sqrt(2), generator=g),
}


# Layers of detectors that the study does not initialize, as torchvision and Detectron do.
_OWN: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "rpn.": lambda w, g: nn.init.normal_(w, std=0.01, generator=g),
    "backbone.fpn.": lambda w, g: nn.init.kaiming_uniform_(w, a=1, generator=g),
    "roi_heads.mask_predictor.": _SCHEMES["he_normal"],
}


@torch.no_grad()
def initialize(network: nn.Module, scheme: str, seed: int, *, zero_last_gamma: bool) -> None:
    """Draws every convolution by `scheme` and what classifies by torch's default of linear layers, in place.

    The pyramid, the proposals and the last layers of masks keep torchvision's schemes. Each parameter has its own
    generator, seeded by (seed, name), for a backbone the name inside of it: convolutions do not depend on what norms
    draw, nor those of a backbone on the task. With `zero_last_gamma` the last norm of every residual branch starts at
    0 (Goyal et al., 2017), so that a block starts as the identity.
    """
    for path, module in network.named_modules():
        name = backbone_path(path) or path
        if isinstance(module, nn.Linear) or path.endswith(".classify"):
            _draw_classifier(module, seed, "linear0" if name in CLASSIFIER else name)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            draw = next((own for prefix, own in _OWN.items() if path.startswith(prefix)), _SCHEMES[scheme])
            draw(module.weight, _generator(seed, name, "weight"))
            if module.bias is not None:
                module.bias.zero_()
        elif zero_last_gamma and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif zero_last_gamma and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def _draw_classifier(layer: Any, seed: int, name: str) -> None:
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in ("weight", "bias"):
        getattr(layer, parameter).uniform_(-bound, bound, generator=_generator(seed, name, parameter))


def _generator(seed: int, *name: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("init", seed, *name))
