"""ResNets (He et al., 2016) made of torchvision's blocks: those for ImageNet, and those of section 4.2 for CIFAR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from study.config.datasets import DATASETS
from study.config.schema import SMALL_DEPTHS, TrialConfig
from study.models.geometry import get_stage

NormLayer = Callable[[int], nn.Module]

_LARGE = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def build_resnet(config: TrialConfig, norm_layer: NormLayer) -> SmallResNet | ResNet:
    """The ResNet of `config` with its classifier, dilated if the config sets an output stride."""
    facts = DATASETS[config.dataset]
    small = config.depth in SMALL_DEPTHS
    if small:
        network: SmallResNet | ResNet = SmallResNet(
            config.depth, norm_layer, channels=facts.channels, classes=facts.classes, width=config.width
        )
    else:
        network = _build_large_resnet(config.depth, norm_layer, facts.channels, facts.classes, config.width)
    if config.output_stride is not None:
        dilate(network, config.output_stride, stem_stride=1 if small else 4)
    return network


def dilate(network: SmallResNet | ResNet, output_stride: int, *, stem_stride: int) -> None:
    """Replaces strides by dilation, in place, in the stages that would exceed `output_stride`.

    Does the same as torchvision's `replace_stride_with_dilation`, which supports only bottleneck blocks.
    """
    stride, dilation = stem_stride, 1
    for stage in get_stages(network).values():
        stage_stride = stage[0].stride
        if stride * stage_stride <= output_stride:
            stride *= stage_stride
            continue
        previous_dilation, dilation = dilation, dilation * stage_stride
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                rate = previous_dilation if layer.stride != (1, 1) else dilation
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation, layer.padding = (rate, rate), (rate, rate)


def get_stages(network: nn.Module) -> dict[str, Any]:
    """The stages of a ResNet by name, without the stem."""
    return {name: child for name, child in network.named_children() if get_stage(f"{name}.")}


def count_output_channels(stage: nn.Module) -> int:
    """The number of channels of a stage's output."""
    return [layer.out_channels for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]


class Backbone(nn.ModuleDict):
    """The layers of a ResNet up to the last one in `outputs`, under their names there.

    Takes images and returns the outputs of the layers in `outputs`, under the names that `outputs` gives them.

    The first `freeze_stages` stages, the stem being the first, are not trained: neither their parameters nor their
    running statistics change. Logits that they share with other layers are trained.
    """

    def __init__(self, network: nn.Module, outputs: Mapping[str, str], *, freeze_stages: int = 0) -> None:
        names = [name for name, _ in network.named_children()]
        length = 1 + max(names.index(name) for name in outputs)
        super().__init__(dict(islice(network.named_children(), length)))
        self.outputs = dict(outputs)
        self.frozen_layers = [name for name in self if get_stage(f"{name}.") < freeze_stages]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the outputs by name."""
        maps = {}
        for name, layer in self.items():
            x = layer(x)
            if name in self.outputs:
                maps[self.outputs[name]] = x
        return maps

    def freeze_stages(self, network: nn.Module) -> None:
        """Freezes the first stages. `network` is the whole network, after its layers share their logits."""
        frozen: list[Any] = [module for name in self.frozen_layers for module in self[name].modules()]
        inside = set(frozen)
        shared = {
            id(parameter)
            for module in network.modules()
            if module not in inside
            for parameter in module.parameters(recurse=False)
        }
        for module in frozen:
            module.frozen = True  # `average_statistics` skips such layers
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(id(parameter) in shared)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name in self.frozen_layers:
            self[name].eval()
        return self


class SmallResNet(nn.Module):
    """ResNet-(6n+2): a 3x3 stem, then three stages of n basic blocks with 16, 32 and 64 channels times `width`.

    Where a stage changes the size of its input, the shortcut is a 1x1 convolution with a norm, so that every
    convolution is followed by a norm. Takes (N, channels, H, W) with any H and W and returns logits (N, classes).
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
        self.layer1 = _build_stage(widths[0], widths[0], blocks, 1, norm_layer)
        self.layer2 = _build_stage(widths[0], widths[1], blocks, 2, norm_layer)
        self.layer3 = _build_stage(widths[1], widths[2], blocks, 2, norm_layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class ShortcutConv2d(nn.Conv2d):
    """A strided 1x1 convolution that drops the skipped pixels first, with the same result.

    oneDNN's strided 1x1 convolution on CPUs writes past the end of a buffer if channels are last and there are fewer
    than 8 of them (16 with AVX-512); see uxlfoundation/oneDNN#6035. This overrides a private method, not `forward`,
    because `study.norms.harden` folds norms only into convolutions with torch's own `forward`.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        down, right = self.stride
        return conv2d(avg_pool2d(input, 1, (down, right)), weight, bias, groups=self.groups)


def _build_stage(inputs: int, outputs: int, blocks: int, stride: int, norm_layer: NormLayer) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(ShortcutConv2d(inputs, outputs, 1, stride, bias=False), norm_layer(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=norm_layer)
    rest = [BasicBlock(outputs, outputs, norm_layer=norm_layer) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _build_large_resnet(depth: int, norm_layer: NormLayer, channels: int, classes: int, width: float) -> ResNet:
    block, layers = _LARGE[depth]
    assert block is Bottleneck or width == 1, "the plan refuses this: torchvision has no such ResNet"
    network: ResNet = ResNet(
        block, list(layers), num_classes=classes, norm_layer=norm_layer, width_per_group=round(64 * width)
    )
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network
