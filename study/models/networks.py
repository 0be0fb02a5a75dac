"""Builds the network of a trial from its task, depth, width and norms, initialized from the trial's seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from study.config.schema import NO_NORM, TrialConfig
from study.models.detection import build_detection
from study.models.geometry import get_role, get_stage
from study.models.initialization import initialize_network
from study.models.norm_counts import check_norms
from study.models.resnet import Backbone, NormLayer, build_resnet
from study.models.segmentation import build_segmentation
from study.norms import build_norm, share_switches
from study.norms.factory import NormFactory

Norms = Mapping[str, NormLayer | None]


def build_network(config: TrialConfig, seed: int, *, ranks: int = 1) -> nn.Module:
    """The network of `config`, on the CPU, in float32 and channels last, which is faster on CPUs and on GPUs.

    Every parameter is drawn from its own generator (seed, parameter name), so networks that differ in their norm start
    from the same convolutions, and networks for different tasks from the same backbone. Each of the `ranks` processes
    or accumulation steps that share a gradient batch (G, B) builds its own network, with equal values.

    Classification: images (N, C, H, W) -> logits (N, classes). Segmentation: see `SegmentationNetwork`. Detection: like
    torchvision's `MaskRCNN`; in training lists of images and targets -> a dictionary of losses, in evaluation a list of
    images -> a list of detections.
    """
    assert config.chunks % ranks == 0, f"{config.chunks} chunks cannot be shared by {ranks} ranks"
    norms = _build_norm_factories(config, seed, ranks)
    # torchvision initializes networks as it builds them; this must not change the state of the global generator.
    with torch.random.fork_rng(devices=[]):
        network = _BUILDERS[config.task](config, norms)
    share_switches(network, key=lambda layer: _get_sharing_key(config, layer))
    initialize_network(network, config.initialization, seed, zero_last_gamma=config.zero_last_gamma)
    backbone = get_backbone(network)
    if isinstance(backbone, Backbone):
        backbone.freeze_stages(network)
    check_norms(network, {role: type(norm(1)) if norm else None for role, norm in norms.items()})
    return network.to(memory_format=torch.channels_last)


def get_backbone(network: nn.Module) -> nn.Module:
    """The ResNet in a network of `build_network`. Its parameters have the same names for all tasks.

    For a classifier it is the network itself, whose layer `fc` is not part of the backbone.
    """
    inner = getattr(network, "backbone", network)
    backbone: nn.Module = getattr(inner, "body", inner)
    return backbone


def _build_norm_factories(config: TrialConfig, seed: int, ranks: int) -> dict[str, NormFactory | None]:
    """A norm factory for each role. Roles with the same norm share one, so `sn-shared` is one choice per network.

    A detector takes the chunks of (G, B) one after the other, because the number of regions that its heads see cannot
    be divided into chunks.
    """
    generator = torch.Generator().manual_seed(seed)
    one_chunk = config.sync_statistics or config.task == "detection"
    factories = {
        name: build_norm(
            name,
            momentum=config.norm_momentum,
            correction=config.correction,
            chunks=1 if one_chunk else config.chunks // ranks,
            sync=config.sync_statistics,
            groups=config.gn_groups,
            statistics_batch=config.statistics_batch,
            logit_init=config.logit_init,
            generator=generator,
        )
        for name in dict.fromkeys(config.norms.values())
        if name != NO_NORM
    }
    return {role: factories.get(name) for role, name in config.norms.items()}


def _build_classifier(config: TrialConfig, norms: Norms) -> nn.Module:
    assert norms["backbone"] is not None
    network = build_resnet(config, norms["backbone"])
    if config.dropout:
        network.fc = nn.Sequential(nn.Dropout(config.dropout), network.fc)
    return network


_BUILDERS: dict[str, Callable[[TrialConfig, Norms], nn.Module]] = {
    "classification": _build_classifier,
    "segmentation": build_segmentation,
    "detection": build_detection,
}


def _get_sharing_key(config: TrialConfig, layer: str) -> tuple[str, int] | str:
    """Layers with equal keys share their logits: with `sn-stage`, those of a stage and those of a head."""
    role = get_role(layer)
    return (role, get_stage(layer)) if config.norms[role].startswith("sn-stage") else layer
