"""The network of a trial: task, depth, width and norms to a `nn.Module`, initialized from the trial's seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from study.config.schema import NO_NORM, TrialConfig
from study.models.detection import build_detection
from study.models.geometry import role_of, stage_of
from study.models.initialization import initialize
from study.models.norm_counts import check_norms
from study.models.resnet import Backbone, NormLayer, build_resnet
from study.models.segmentation import build_segmentation
from study.norms import build_norm, share_switches
from study.norms.factory import NormFactory

Norms = Mapping[str, NormLayer | None]


def build_network(config: TrialConfig, seed: int, *, ranks: int = 1) -> nn.Module:
    """The network of `config`, on the CPU, in float32, channels last: a sixth faster on CPUs, and what GPUs want.

    Every parameter is drawn from its own generator (seed, parameter name), so networks that differ in their norm
    start from the same convolutions, and those of different tasks from the same backbone. Each of the `ranks`
    processes that share (G, B), or take it in as many parts, builds its own, of equal values.

    Classification: images (N, C, H, W) to logits (N, classes). Segmentation: as `SegmentationNetwork`. Detection: as
    torchvision's `MaskRCNN`, a list of images and a list of targets to a dict of losses in training, a list of images
    to a list of detections in evaluation.
    """
    assert config.chunks % ranks == 0, f"{config.chunks} chunks cannot be shared by {ranks} ranks"
    norms = _norm_layers(config, seed, ranks)
    # torchvision initializes on construction; the global generator is none of our state.
    with torch.random.fork_rng(devices=[]):
        network = _BUILDERS[config.task](config, norms)
    share_switches(network, key=lambda layer: _sharing(config, layer))
    initialize(network, config.initialization, seed, zero_last_gamma=config.zero_last_gamma)
    backbone = backbone_of(network)
    if isinstance(backbone, Backbone):
        backbone.freeze(network)
    check_norms(network, {role: type(norm(1)) if norm else None for role, norm in norms.items()})
    return network.to(memory_format=torch.channels_last)


def backbone_of(network: nn.Module) -> nn.Module:
    """The ResNet in a network of `build_network`, with the same names inside whatever the task.

    Of a classifier it is the network itself, with a layer `fc` that is no part of a backbone.
    """
    inner = getattr(network, "backbone", network)
    backbone: nn.Module = getattr(inner, "body", inner)
    return backbone


def _norm_layers(config: TrialConfig, seed: int, ranks: int) -> dict[str, NormFactory | None]:
    """A factory for each role. Roles of one norm have one: `sn-shared` is one choice in all of a network.

    A detector's heads see as many regions as there are, which are not divisible: it takes the chunks of (G, B) one
    after the other.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = config.sync_statistics or config.task == "detection"
    factories = {
        name: build_norm(
            name,
            momentum=config.norm_momentum,
            correction=config.correction,
            chunks=1 if whole else config.chunks // ranks,
            sync=config.sync_statistics,
            groups=config.gn_groups,
            statistics_batch=config.statistics_batch,
            logit_init=config.logit_init,
            generator=generator,
        )
        for name in {**dict.fromkeys(config.norms.values())}
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


def _sharing(config: TrialConfig, layer: str) -> tuple[str, int] | str:
    """Layers of equal key share their logits: with `sn-stage` those of a stage, and those of a head."""
    role = role_of(layer)
    return (role, stage_of(layer)) if config.norms[role].startswith("sn-stage") else layer
