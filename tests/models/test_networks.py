"""Networks: depth, width, switch layers, and initialization as a factor."""

from __future__ import annotations

import ctypes.util
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from study.config.schema import LARGE_DEPTHS, SMALL_DEPTHS, TrialConfig
from study.models import build_network
from study.models.resnet import ShortcutConv2d
from study.norms import switch_weights

SCHEMES = ("he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal")


def small(**fields: object) -> TrialConfig:
    return TrialConfig(**{"depth": 8, "batch_size": 2, "chunks": 2, **fields})  # type: ignore[arg-type]


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("depth", SMALL_DEPTHS)
def test_a_small_resnet_has_its_depth_in_layers_and_a_norm_after_every_convolution(depth: int) -> None:
    network = build_network(small(depth=depth), seed=0)
    shortcuts = 2  # the depth of a ResNet does not count 1x1 convolutions
    assert len(convolutions(network)) - shortcuts + 1 == depth  # plus the classifier
    assert len(switch_weights(network)) == len(convolutions(network))


@pytest.mark.parametrize("depth", LARGE_DEPTHS)
def test_a_large_resnet_has_the_parameters_of_torchvisions(depth: int) -> None:
    config = TrialConfig(dataset="imagenet", depth=depth, norm="bn", chunks=1)
    reference = getattr(torchvision_models, f"resnet{depth}")(weights=None)
    ours = build_network(config, seed=0)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}


@pytest.mark.parametrize(
    ("dataset", "channels", "size"), [("digits", 1, 8), ("fashion_mnist", 1, 28), ("cifar100", 3, 32)]
)
@pytest.mark.parametrize("depth", [8, 18])
def test_networks_take_images_of_any_channels_and_size(dataset: str, channels: int, size: int, depth: int) -> None:
    network = build_network(small(dataset=dataset, depth=depth), seed=0)
    classes = 100 if dataset == "cifar100" else 10
    assert network(torch.randn(4, channels, size, size)).shape == (4, classes)


def test_width_scales_channels() -> None:
    assert build_network(small(width=0.5), seed=0).conv1.out_channels == 8


def test_zero_last_gamma_makes_a_block_start_as_the_identity() -> None:
    config = small(zero_last_gamma=True)
    block = build_network(config, seed=0).layer1[0].eval()
    x = torch.randn(4, 16, 8, 8).relu()
    torch.testing.assert_close(block(x), x)
    assert build_network(small(zero_last_gamma=False), seed=0).layer1[0].bn2.weight.eq(1).all()


def test_dropout_precedes_the_classifier() -> None:
    network = build_network(small(dropout=0.3), seed=0)
    assert isinstance(network.fc[0], nn.Dropout)
    assert network.fc[0].p == 0.3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initialization_has_its_published_scale(scheme: str) -> None:
    convolution = build_network(small(depth=20, initialization=scheme), seed=0).layer3[1].conv1
    fan_out = 9 * convolution.out_channels
    fan_in = 9 * convolution.in_channels
    expected = {
        "he_normal": math.sqrt(2 / fan_out),
        "he_uniform": math.sqrt(2 / fan_out),
        "xavier_normal": math.sqrt(2 / (fan_in + fan_out)),
        "xavier_uniform": math.sqrt(2 / (fan_in + fan_out)),
        "orthogonal": math.sqrt(2 / fan_in),
    }[scheme]
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.03)
    if scheme.endswith("uniform"):
        assert convolution.weight.abs().max() <= expected * math.sqrt(3) * 1.0001


def test_orthogonal_is_orthogonal() -> None:
    weight = build_network(small(initialization="orthogonal"), seed=0).layer1[0].conv1.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


@pytest.mark.parametrize("other", ["bn", "gn", "sn-random", "ssn", "sn-stage"])
def test_networks_that_differ_in_norm_start_from_the_same_weights(other: str) -> None:
    ours, theirs = build_network(small(), seed=5), build_network(small(norm=other), seed=5)
    for mine, other_one in zip(convolutions(ours), convolutions(theirs), strict=True):
        torch.testing.assert_close(mine.weight, other_one.weight, rtol=0, atol=0)
    torch.testing.assert_close(ours.fc.weight, theirs.fc.weight, rtol=0, atol=0)


def test_random_logits_differ_by_layer_and_follow_from_the_seed() -> None:
    config = small(logit_init="random")
    weights = [layer.mean for layer in switch_weights(build_network(config, seed=3)).values()]
    again = [layer.mean for layer in switch_weights(build_network(config, seed=3)).values()]
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("sync", "ranks", "chunks"), [(False, 1, 4), (False, 2, 2), (False, 4, 1), (True, 1, 1), (True, 2, 1)]
)
def test_ranks_share_the_chunks_and_synchronized_layers_have_one(sync: bool, ranks: int, chunks: int) -> None:
    layer = build_network(small(chunks=4, sync_statistics=sync), seed=0, ranks=ranks).layer1[0].bn1
    assert (layer.chunks, layer.sync) == (chunks, sync)


def test_stages_share_their_logits() -> None:
    network = build_network(small(norm="sn-stage", depth=14), seed=0)
    assert network.layer1[0].bn1.mean_weight is network.layer1[1].bn2.mean_weight
    assert network.layer1[0].bn1.mean_weight is not network.layer2[0].bn1.mean_weight
    assert network.bn1.mean_weight is not network.layer1[0].bn1.mean_weight


@pytest.mark.parametrize("size", [1, 5, 8])
def test_a_shortcut_equals_a_strided_convolution(size: int) -> None:
    ours = ShortcutConv2d(4, 8, 1, 2, bias=False).double()
    reference = nn.Conv2d(4, 8, 1, 2, bias=False).double()
    reference.load_state_dict(ours.state_dict())
    images = torch.randn(3, 4, size, size, dtype=torch.float64)
    outcomes = []
    for layer in (ours, reference):
        x = images.clone().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        outcomes.append((y.detach(), x.grad, layer.weight.grad))
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_torch_runs_the_private_method_of_a_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch stopped calling `_conv_forward`, the results would be the same and the heap corruption would be back."""
    monkeypatch.setattr(ShortcutConv2d, "_conv_forward", lambda *_: "ours")
    assert ShortcutConv2d(4, 8, 1, 2)(torch.zeros(1, 4, 2, 2)) == "ours"


HEAP_CHECK = """
import torch
from study.config.schema import TrialConfig
from study.models import build_network
for dataset, channels, size, width in (("digits", 1, 8, 0.25), ("cifar10", 3, 32, 0.5)):
    network = build_network(TrialConfig(dataset=dataset, depth=8, width=width, norm="sn", chunks=2, batch_size=4), 0)
    for batch in (8, 16, 24) * 2:
        network(torch.randn(batch, channels, size, size)).sum().backward()
"""


@pytest.mark.skipif(ctypes.util.find_library("c_malloc_debug") is None, reason="glibc has no libc_malloc_debug here")
def test_training_does_not_corrupt_the_heap() -> None:
    """Convolutions with few channels, channels last; see `ShortcutConv2d`."""
    environment = {**os.environ, "LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", HEAP_CHECK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
