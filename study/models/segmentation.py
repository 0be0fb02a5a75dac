"""Semantic segmentation: a ResNet, dilated if asked for, and a decoder that uses the study's norm everywhere.

torchvision's own segmentation heads do not accept a norm layer; they always use BatchNorm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import Conv2dNormActivation

from study.config.datasets import DATASETS
from study.config.schema import SMALL_DEPTHS, TrialConfig
from study.models.resnet import Backbone, NormLayer, build_resnet, count_output_channels, get_stages

LARGE_CHANNELS = 256  # of DeepLabV3


class SegmentationNetwork(nn.Module):
    """Images (N, C, H, W) -> (logits (N, classes, H, W), auxiliary logits of the same shape or None).

    auxiliary: a second decoder on the stage before the last, used only in training.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.decoder, self.auxiliary = backbone, decoder, auxiliary

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = self.backbone(images)
        logits = _resize_logits(self.decoder(maps["last"]), images)
        if self.auxiliary is None or not self.training:
            return logits, None
        return logits, _resize_logits(self.auxiliary(maps["before"]), images)


def build_segmentation(config: TrialConfig, norms: Mapping[str, NormLayer | None]) -> SegmentationNetwork:
    """The network of a segmentation trial."""
    assert norms["backbone"] is not None
    resnet = build_resnet(config, norms["backbone"])
    (before, stage_before), (last, last_stage) = list(get_stages(resnet).items())[-2:]
    backbone = Backbone(resnet, {before: "before", last: "last"}, freeze_stages=config.freeze_stages)
    build_decoder = _build_fcn if config.task_head == "fcn" else _build_deeplab
    decoder = build_decoder(count_output_channels(last_stage), config, norms["decoder"])
    auxiliary = None
    if config.deep_supervision:
        auxiliary = _build_fcn(count_output_channels(stage_before), config, norms["decoder"])
    return SegmentationNetwork(backbone, decoder, auxiliary)


def _build_fcn(inputs: int, config: TrialConfig, norm_layer: NormLayer | None) -> nn.Sequential:
    """The head of FCN, called c1 in the authors' ADE20K code. Small networks have few channels and keep all of them."""
    channels = inputs if config.depth in SMALL_DEPTHS else inputs // 4
    layers: dict[str, nn.Module] = {"conv": Conv2dNormActivation(inputs, channels, norm_layer=norm_layer)}
    return _add_classifier(channels, config, layers)


def _build_deeplab(inputs: int, config: TrialConfig, norm_layer: NormLayer | None) -> nn.Sequential:
    """The head of DeepLabV3 (Chen et al., 2017)."""
    small = config.depth in SMALL_DEPTHS
    channels = inputs if small else LARGE_CHANNELS
    # The published rates are 6, 12 and 18 at output stride 16, and 12, 24 and 36 at 8: the same part of the image. Maps
    # of small images have 16 pixels per side at stride 4, where 6, 12 and 18 would reach beyond the map.
    rate = 8 // (config.output_stride or 4) if small else 96 // (config.output_stride or 32)
    layers = {
        "pyramid": AtrousPyramid(inputs, channels, (rate, 2 * rate, 3 * rate), norm_layer),
        "project": Conv2dNormActivation(5 * channels, channels, 1, norm_layer=norm_layer),
        "conv": Conv2dNormActivation(channels, channels, norm_layer=norm_layer),
    }
    return _add_classifier(channels, config, layers)


def _add_classifier(channels: int, config: TrialConfig, layers: dict[str, nn.Module]) -> nn.Sequential:
    """The layers, followed by dropout if the config has it, and by a 1x1 convolution that classifies pixels."""
    classes = DATASETS[config.dataset].pixel_classes
    assert classes is not None, "the plan refuses this"
    if config.dropout:
        layers["dropout"] = nn.Dropout(config.dropout)
    return nn.Sequential(OrderedDict({**layers, "classify": nn.Conv2d(channels, classes, 1)}))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: concatenates a 1x1 convolution, three dilated ones and the global average."""

    networks = 1
    """Number of networks whose channels lie side by side (study/models/fused.py)."""

    def __init__(self, inputs: int, channels: int, rates: tuple[int, ...], norm_layer: NormLayer | None) -> None:
        super().__init__()
        self.point = Conv2dNormActivation(inputs, channels, 1, norm_layer=norm_layer)
        self.atrous = nn.ModuleList(
            Conv2dNormActivation(inputs, channels, dilation=rate, norm_layer=norm_layer) for rate in rates
        )
        self.pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), Conv2dNormActivation(inputs, channels, 1, norm_layer=norm_layer)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, (2 + rates) * channels, H, W)."""
        point = self.point(x)
        branches = [point, *(branch(x) for branch in self.atrous), self.pool(x).expand_as(point)]
        if self.networks == 1:
            return torch.cat(branches, 1)
        return torch.cat([branch.unflatten(1, (self.networks, -1)) for branch in branches], 2).flatten(1, 2)


def _resize_logits(logits: Tensor, images: Tensor) -> Tensor:
    """Logits at the size of the images."""
    # On CUDA the backward pass adds in a varying order, unless torch is set to be deterministic, which is slower.
    return interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
