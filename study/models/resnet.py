"""ResNets for small images (He et al., 2016, section 4.2), with torchvision's blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchvision.models.resnet import BasicBlock


class SmallResNet(nn.Module):
    """ResNet-(6n+2): a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 channels times `width`.

    Where a stage changes size the shortcut is a 1x1 convolution with a norm, so that a norm follows every
    convolution. Takes (N, channels, H, W) with any H and W, gives logits (N, classes).
    """

    def __init__(
        self,
        depth: int,
        norm_layer: Callable[[int], nn.Module],
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


def _stage(
    inputs: int, outputs: int, blocks: int, stride: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(_Shortcut(inputs, outputs, 1, stride, bias=False), norm_layer(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=norm_layer)
    rest = [BasicBlock(outputs, outputs, norm_layer=norm_layer) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
