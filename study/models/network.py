"""The network of a trial: depth, width and norm to a `nn.Module`, initialized from the trial's seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from study.config import SMALL_DEPTHS, TrialConfig
from study.data.catalog import DATASETS
from study.models.geometry import stage_of
from study.models.initialization import initialize
from study.models.resnet import SmallResNet
from study.norms import build_norm, share_switches

NormLayer = Callable[[int], nn.Module]

_LARGE = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def build_network(config: TrialConfig, seed: int, *, ranks: int = 1) -> nn.Module:
    """The network of `config`, on the CPU, in float32, channels last: a sixth faster on CPUs, and what GPUs want.

    Every parameter is drawn from its own generator (seed, parameter name), so networks that differ in their norm
    start from the same convolutions. Each of the `ranks` processes that share (G, B), or take it in as many parts,
    builds its own, of equal values.
    """
    assert config.chunks % ranks == 0, f"{config.chunks} chunks cannot be shared by {ranks} ranks"
    generator = torch.Generator().manual_seed(seed)
    norm_layer = build_norm(
        config.norm,
        momentum=config.norm_momentum,
        correction=config.correction,
        chunks=1 if config.sync_statistics else config.chunks // ranks,
        sync=config.sync_statistics,
        groups=config.gn_groups,
        statistics_batch=config.statistics_batch,
        logit_init=config.logit_init,
        generator=generator,
    )
    facts = DATASETS[config.dataset]
    # torchvision initializes on construction; the global generator is none of our state.
    with torch.random.fork_rng(devices=[]):
        if config.depth in SMALL_DEPTHS:
            network: SmallResNet | ResNet = SmallResNet(
                config.depth, norm_layer, channels=facts.channels, classes=facts.classes, width=config.width
            )
        else:
            network = _large_resnet(config.depth, norm_layer, facts.channels, facts.classes, config.width)
    if config.dropout:
        network.fc = nn.Sequential(nn.Dropout(config.dropout), network.fc)
    if config.norm.startswith("sn-stage"):
        share_switches(network, key=stage_of)
    initialize(network, config.initialization, seed, zero_last_gamma=config.zero_last_gamma)
    return network.to(memory_format=torch.channels_last)


def _large_resnet(depth: int, norm_layer: NormLayer, channels: int, classes: int, width: float) -> ResNet:
    block, layers = _LARGE[depth]
    assert block is Bottleneck or width == 1, "refused by the plan: torchvision has no such ResNet"
    network: ResNet = ResNet(
        block, list(layers), num_classes=classes, norm_layer=norm_layer, width_per_group=round(64 * width)
    )
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network
