"""ResNets (He et al., 2016) with torchvision's blocks: torchvision's own, and those of section 4.2 for small images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from study.config.datasets import DATASETS
from study.config.schema import SMALL_DEPTHS, TrialConfig
from study.models.geometry import stage_of

NormLayer = Callable[[int], nn.Module]

_LARGE = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def build_resnet(config: TrialConfig, norm_layer: NormLayer) -> SmallResNet | ResNet:
    """The ResNet of `config` with its classifier, dilated where it has an output stride."""
    facts = DATASETS[config.dataset]
    if config.depth in SMALL_DEPTHS:
        network: SmallResNet | ResNet = SmallResNet(
            config.depth, norm_layer, channels=facts.channels, classes=facts.classes, width=config.width
        )
    else:
        network = _large_resnet(config.depth, norm_layer, facts.channels, facts.classes, config.width)
    if config.output_stride is not None:
        dilate(network, config.output_stride, stem_stride=1 if config.depth in SMALL_DEPTHS else 4)
    return network


def dilate(network: SmallResNet | ResNet, output_stride: int, *, stem_stride: int) -> None:
    """Trades strides for dilation, in place, in the stages that would go beyond `output_stride`.

    torchvision's `replace_stride_with_dilation`, which knows one kind of block, for both.
    """
    stride, dilation = stem_stride, 1
    for stage in stages_of(network).values():
        step = stage[0].stride
        if stride * step <= output_stride:
            stride *= step
            continue
        before, dilation = dilation, dilation * step
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                rate = before if layer.stride != (1, 1) else dilation
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation, layer.padding = (rate, rate), (rate, rate)


def stages_of(network: nn.Module) -> dict[str, Any]:
    """The stages of a ResNet by name, without the stem."""
    return {name: child for name, child in network.named_children() if stage_of(f"{name}.")}


def output_channels(stage: nn.Module) -> int:
    """Channels that a stage gives."""
    return [layer.out_channels for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]


class Backbone(IntermediateLayerGetter):  # type: ignore[misc]  # torchvision has no types
    """A ResNet up to the last of `outputs`, with its names: images to maps, by the names that `outputs` gives them.

    Its first `freeze_stages` stages, of which the stem is one, do not learn: neither do their parameters nor their
    running statistics. Logits that layers beyond them share do.
    """

    def __init__(self, network: nn.Module, outputs: Mapping[str, str], *, freeze_stages: int = 0) -> None:
        super().__init__(network, dict(outputs))
        self.frozen = [name for name in self if stage_of(f"{name}.") < freeze_stages]

    def freeze(self, network: nn.Module) -> None:
        """Freezes the stages that are to be, once the layers of the whole `network` share what they share."""
        frozen = [module for name in self.frozen for module in self[name].modules()]
        inside = set(frozen)
        shared = {
            id(parameter)
            for module in network.modules()
            if module not in inside
            for parameter in module.parameters(recurse=False)
        }
        for module in frozen:
            module.frozen = True  # `average_statistics` leaves it alone, too
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(id(parameter) in shared)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name in self.frozen:
            self[name].eval()
        return self


class SmallResNet(nn.Module):
    """ResNet-(6n+2): a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 channels times `width`.

    Where a stage changes size the shortcut is a 1x1 convolution with a norm, so that a norm follows every
    convolution. Takes (N, channels, H, W) with any H and W, gives logits (N, classes).
    """

    def __init__(
        self,
        depth: int,
        norm_layer: NormLayer,
        *,
        channels: int = 3,
        classes: int = 10,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth={depth}: a small ResNet has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110")
        widths = [max(1, round(planes * width)) for planes in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = norm_layer(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[0], blocks, 1, norm_layer)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, norm_layer)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, norm_layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class _Shortcut(nn.Conv2d):
    """A 1x1 convolution that takes its stride first: the same numbers.

    oneDNN, on CPUs, takes it in a buffer that is too small where channels are last and fewer than 8 (with AVX-512, 16),
    and writes past its end (uxlfoundation/oneDNN#6035).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        down, right = self.stride
        return conv2d(input[:, :, ::down, ::right], weight, bias)


def _stage(inputs: int, outputs: int, blocks: int, stride: int, norm_layer: NormLayer) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(_Shortcut(inputs, outputs, 1, stride, bias=False), norm_layer(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=norm_layer)
    rest = [BasicBlock(outputs, outputs, norm_layer=norm_layer) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _large_resnet(depth: int, norm_layer: NormLayer, channels: int, classes: int, width: float) -> ResNet:
    block, layers = _LARGE[depth]
    assert block is Bottleneck or width == 1, "refused by the plan: torchvision has no such ResNet"
    network: ResNet = ResNet(
        block, list(layers), num_classes=classes, norm_layer=norm_layer, width_per_group=round(64 * width)
    )
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network
