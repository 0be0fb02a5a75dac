"""Several networks of one shape computed as one: their channels lie side by side, and convolutions are grouped.

Small networks leave a machine idle, because a call costs more than its arithmetic. The idea is that of HFTA (Wang et
al., MLSys 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation

from study.models.resnet import Backbone, ShortcutConv2d, SmallResNet
from study.models.segmentation import AtrousPyramid, SegmentationNetwork
from study.norms.fused import FUSED_NORMS, FusedNorm, Share

# Containers whose `forward` treats every channel alike: it neither joins nor splits, counts nor names channels. Only
# `AtrousPyramid` joins some, and is told how many networks there are.
_CONTAINERS = (
    SmallResNet, ResNet, BasicBlock, Bottleneck, nn.Sequential, nn.ModuleList, Backbone, SegmentationNetwork,
    AtrousPyramid, Conv2dNormActivation,
)  # fmt: skip
_CHANNEL_WISE = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Identity)
# What a module of a network of a user's own may do beyond its class.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotFusableError(Exception):
    """The networks cannot be computed as one; the message says which module is the reason."""


class FusedNetworks:
    """Networks of one shape, which are computed as one.

    Their parameters and buffers become views of larger tensors. They stay ordinary networks: they can be saved,
    evaluated and changed in place by an optimizer. What a network computes does not depend on the others, but for the
    order of its sums, which depends on how many there are.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Raises `NotFusableError`."""
        self.networks = tuple(networks)
        self._shared: dict[int, Tensor] = {}  # by the id of the first network's tensor
        self._first: list[tuple[Tensor, Tensor]] = []  # the first tensor of each network, its part of the larger one
        self._gradients: list[list[tuple[Tensor, Tensor]]] = [[] for _ in networks]  # parameters, parts of the gradient
        self._fused = _fuse(self.networks, "", {}, self._share)

    def forward(self, images: Mapping[int, Tensor]) -> dict[int, Any]:
        """The outputs of the networks with the given numbers, for their images (N, C, H, W).

        An output is a tensor (N, classes, ...), or a tuple of such tensors and None. The other networks are computed
        for images of zeros, which in training changes their running statistics.
        """
        given = next(iter(images.values()))
        training = self.networks[next(iter(images))].training
        for number, network in enumerate(self.networks):
            if number not in images and network.training != training:
                network.train(training)
        self._fused.training = training  # the fused network is a copy, and its forward pass may ask for the mode
        nothing = torch.zeros_like(given)
        outputs: Any = self._fused(
            torch.cat([images.get(number, nothing) for number in range(len(self.networks))], dim=1)
        )
        parts = _split(outputs, len(self.networks))
        return {number: parts[number] for number in images}

    def backward(self, losses: Mapping[int, Tensor]) -> None:
        """Sets the gradients of the networks with the given numbers to those of their losses."""
        torch._foreach_zero_([shared.grad for shared in self._shared.values() if shared.grad is not None])
        torch.autograd.backward(tuple(losses.values()))
        for number in losses:
            for parameter, gradient in self._gradients[number]:
                parameter.grad = gradient

    @property
    def is_intact(self) -> bool:
        """Whether the networks' tensors are still views, which moving a network to another device ends."""
        return all(tensor.data_ptr() == view.data_ptr() for tensor, view in self._first)

    def _share(self, tensors: Sequence[Tensor]) -> Tensor:
        if (shared := self._shared.get(id(tensors[0]))) is not None:
            return shared
        trained = {tensor.requires_grad for tensor in tensors}
        if len(trained) > 1 or len({tensor.shape for tensor in tensors}) > 1:
            raise NotFusableError("parameters that only some of the networks train, or of other shapes")
        if any(tensor._backward_hooks or not tensor.is_leaf for tensor in tensors):
            raise NotFusableError("parameters with hooks, or that are computed from others")
        shared = torch.cat([tensor.detach() for tensor in tensors]).requires_grad_(trained.pop())
        views = shared.detach().chunk(len(tensors))
        for tensor, view in zip(tensors, views, strict=True):
            tensor.data = view
        self._first = self._first or list(zip(tensors, views, strict=True))
        if shared.requires_grad:
            shared.grad = torch.zeros_like(shared)
            for gradients, *pair in zip(self._gradients, tensors, shared.grad.chunk(len(tensors)), strict=True):
                gradients.append((pair[0], pair[1]))
        self._shared[id(tensors[0])] = shared
        return shared


def _split(outputs: Any, count: int) -> Sequence[Any]:
    """The output of each of `count` networks."""
    if isinstance(outputs, tuple):
        return list(zip(*(_split(output, count) for output in outputs), strict=True))
    return [None] * count if outputs is None else outputs.chunk(count, dim=1)


def _fuse(modules: Sequence[nn.Module], path: str, done: dict[int, nn.Module], share: Share) -> nn.Module:
    first = modules[0]
    if id(first) in done:
        return done[id(first)]
    kinds = {f"{type(module).__name__}({module.extra_repr()})" for module in modules}
    if len(kinds) > 1:
        raise NotFusableError(f"{path}: {' and '.join(sorted(kinds))}")
    if any(getattr(module, name, None) for module in modules for name in _HOOKS):
        raise NotFusableError(f"{path}: a {type(first).__name__} with hooks")
    kind = type(first)
    if build := _LAYERS.get(kind):
        fused = build(modules, share)
    elif kind in _CHANNEL_WISE:
        fused = first
    elif kind in _CONTAINERS and not first._parameters and not first._buffers:
        if len({tuple(module._modules) for module in modules}) > 1:
            raise NotFusableError(f"{path}: other layers")
        fused = copy.copy(first)
        children = [dict(module.named_children()) for module in modules]
        fused._modules = {
            name: _fuse([each[name] for each in children], f"{path}.{name}".lstrip("."), done, share)
            for name in children[0]
        }
        if isinstance(fused, AtrousPyramid):
            fused.networks = len(modules)
    else:
        raise NotFusableError(f"{path}: {kind.__name__} has no fused form")
    done[id(first)] = fused
    return fused


class FusedConv2d(nn.Module):
    """Takes (N, T * C, H, W), the inputs of T convolutions side by side."""

    def __init__(self, layers: Sequence[nn.Conv2d], share: Share) -> None:
        super().__init__()
        self.shared_weight = share([layer.weight for layer in layers])
        biases: list[Any] = [layer.bias for layer in layers]
        self.shared_bias = None if biases[0] is None else share(biases)
        self.convolution = copy.copy(layers[0])
        self.convolution.groups *= len(layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution._conv_forward(x, self.shared_weight, self.shared_bias)
        return y


class FusedLinear(nn.Module):
    """Takes (N, T * features), the inputs of T linear layers side by side."""

    def __init__(self, layers: Sequence[nn.Linear], share: Share) -> None:
        super().__init__()
        self.trials = len(layers)
        self.shared_weight = share([layer.weight for layer in layers])
        self.shared_bias = share([layer.bias for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.shared_weight.view(self.trials, -1, self.shared_weight.shape[1])
        bias = self.shared_bias.view(self.trials, 1, -1)
        y = torch.baddbmm(bias, x.reshape(len(x), self.trials, -1).transpose(0, 1), weight.transpose(1, 2))
        return y.transpose(0, 1).flatten(1)


_LAYERS: dict[type[nn.Module], Callable[[Sequence[Any], Share], nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    ShortcutConv2d: FusedConv2d,
    nn.Linear: FusedLinear,
    **dict.fromkeys(FUSED_NORMS, FusedNorm),
}
