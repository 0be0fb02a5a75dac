"""Initialization as a factor of the study: draws the weights of a network, with one random generator per parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from study.config.seeds import derive_seed
from study.models.geometry import get_backbone_path

CLASSIFIER_NAMES = ("fc", "fc.1")  # of an image classifier, without and with dropout

# Fan-out, as in the recipe of the SN paper: N(0, sqrt(2 / (k k C_out))).
_SCHEMES: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "he_normal": lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "he_uniform": lambda w, g: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu", generator=g),
    "xavier_normal": lambda w, g: nn.init.xavier_normal_(w, generator=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    "orthogonal": lambda w, g: nn.init.orthogonal_(w, gain=math.sqrt(2), generator=g),
}

# Parts of a detector that keep the scheme of torchvision and Detectron, by the prefix of their path.
_PART_SCHEMES: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "rpn.": lambda w, g: nn.init.normal_(w, std=0.01, generator=g),
    "backbone.fpn.": lambda w, g: nn.init.kaiming_uniform_(w, a=1, generator=g),
    "roi_heads.mask_predictor.": _SCHEMES["he_normal"],
}


@torch.no_grad()
def initialize_network(network: nn.Module, scheme: str, seed: int, *, zero_last_gamma: bool) -> None:
    """Draws convolutions by `scheme` and classifiers by torch's default scheme for linear layers, in place.

    The feature pyramid, the region proposals and the mask predictor keep torchvision's schemes. Each parameter has its
    own generator, seeded by (seed, name), where the name of a backbone's parameter is the one within the backbone.
    Convolutions therefore depend neither on the random numbers of norms nor, in a backbone, on the task. With
    `zero_last_gamma` the last norm of every residual branch starts at 0 (Goyal et al., 2017), so that each block starts
    as the identity.
    """
    for path, module in network.named_modules():
        name = get_backbone_path(path) or path
        if isinstance(module, nn.Linear) or path.endswith(".classify"):
            _draw_classifier(module, seed, "linear0" if name in CLASSIFIER_NAMES else name)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            draw = next((draw for part, draw in _PART_SCHEMES.items() if path.startswith(part)), _SCHEMES[scheme])
            draw(module.weight, _build_generator(seed, name, "weight"))
            if module.bias is not None:
                module.bias.zero_()
        elif zero_last_gamma and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif zero_last_gamma and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def _draw_classifier(layer: Any, seed: int, name: str) -> None:
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in ("weight", "bias"):
        getattr(layer, parameter).uniform_(-bound, bound, generator=_build_generator(seed, name, parameter))


def _build_generator(seed: int, *name: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("init", seed, *name))
