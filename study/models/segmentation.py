"""Semantic segmentation: a ResNet, plain or dilated, and a decoder with the study's norm in every place.

torchvision's own heads take no norm: they put BatchNorm wherever another one was asked for.
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
from study.models.resnet import Backbone, NormLayer, build_resnet, output_channels, stages_of

LARGE_CHANNELS = 256  # of DeepLabV3


class SegmentationNetwork(nn.Module):
    """Images (N, C, H, W) to (logits (N, classes, H, W), auxiliary logits of the same shape or None).

    auxiliary: a second decoder, on the stage before the last, in training only.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.decoder, self.auxiliary = backbone, decoder, auxiliary

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = self.backbone(images)
        logits = _enlarge(self.decoder(maps["last"]), images)
        if self.auxiliary is None or not self.training:
            return logits, None
        return logits, _enlarge(self.auxiliary(maps["before"]), images)


def build_segmentation(config: TrialConfig, norms: Mapping[str, NormLayer | None]) -> SegmentationNetwork:
    """The network of a segmentation trial."""
    assert norms["backbone"] is not None
    resnet = build_resnet(config, norms["backbone"])
    (before, earlier), (last, stage) = list(stages_of(resnet).items())[-2:]
    backbone = Backbone(resnet, {before: "before", last: "last"}, freeze_stages=config.freeze_stages)
    build = _fcn if config.task_head == "fcn" else _deeplab
    decoder = build(output_channels(stage), config, norms["decoder"])
    auxiliary = _fcn(output_channels(earlier), config, norms["decoder"]) if config.deep_supervision else None
    return SegmentationNetwork(backbone, decoder, auxiliary)


def _fcn(inputs: int, config: TrialConfig, norm_layer: NormLayer | None) -> nn.Sequential:
    """FCN's head, which is c1 of the ADE20K framework; that of a small network, which has few channels, keeps them."""
    channels = inputs if config.depth in SMALL_DEPTHS else inputs // 4
    return _classified(channels, config, {"conv": Conv2dNormActivation(inputs, channels, norm_layer=norm_layer)})


def _deeplab(inputs: int, config: TrialConfig, norm_layer: NormLayer | None) -> nn.Sequential:
    """DeepLabV3's head (Chen et al., 2017)."""
    small = config.depth in SMALL_DEPTHS
    channels = inputs if small else LARGE_CHANNELS
    # Its rates 6, 12 and 18 are of stride 16, and 12, 24 and 36 of stride 8: as much of the image at every stride. Maps
    # of small images have 16 pixels a side at stride 4, where 6, 12 and 18 would look beyond them.
    rate = 8 // (config.output_stride or 4) if small else 96 // (config.output_stride or 32)
    layers = {
        "pyramid": _Pyramid(inputs, channels, (rate, 2 * rate, 3 * rate), norm_layer),
        "project": Conv2dNormActivation(5 * channels, channels, 1, norm_layer=norm_layer),
        "conv": Conv2dNormActivation(channels, channels, norm_layer=norm_layer),
    }
    return _classified(channels, config, layers)


def _classified(channels: int, config: TrialConfig, layers: dict[str, nn.Module]) -> nn.Sequential:
    classes = DATASETS[config.dataset].pixel_classes
    assert classes is not None, "refused by the plan"
    if config.dropout:
        layers["dropout"] = nn.Dropout(config.dropout)
    return nn.Sequential(OrderedDict({**layers, "classify": nn.Conv2d(channels, classes, 1)}))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the map as it is, at three rates, and its mean, side by side."""

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
        point = self.point(x)
        return torch.cat([point, *(branch(x) for branch in self.atrous), self.pool(x).expand_as(point)], 1)


def _enlarge(logits: Tensor, images: Tensor) -> Tensor:
    # Backward, CUDA adds in any order, unless torch is told to be deterministic: then it takes a slower form.
    return interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
