"""Networks that are computed as one: each has the outputs and gradients that it has by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.config.schema import TrialConfig
from study.models import build_network
from study.models.fused import FusedNetworks, NotFusableError
from study.norms import set_radius

SMALL = {"depth": 8, "width": 0.5, "dataset": "digits", "batch_size": 4, "chunks": 2}
SWITCHES = ["sn", "ssn", "sn-shared", "sn-stage", "sn-tied", "sn-uniform", "sn-random", "sn[in,bn]", "sn[in,ln,bn,gn]"]
NORMS = ["bn", "gn", "in", "ln", *SWITCHES]


def build(count: int, **settings: Any) -> list[nn.Module]:
    config = TrialConfig(**{**SMALL, **settings})
    networks = [build_network(config, seed) for seed in range(count)]
    for seed, network in enumerate(networks):
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():  # gammas of 0 and equal logits would hide what differs
            parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator)
        if config.norm.startswith("ssn"):
            set_radius(network, 0.5)
    return networks


def draw_images(count: int, dtype: torch.dtype = torch.float32, channels: int = 1, size: int = 8) -> dict[int, Tensor]:
    shape, generator = (8, channels, size, size), torch.Generator().manual_seed(7)
    return {number: torch.randn(*shape, generator=generator, dtype=dtype) for number in range(count)}


def compute(networks: list[nn.Module], images: dict[int, Tensor], fused: FusedNetworks | None) -> list[list[Tensor]]:
    """Outputs, gradients and buffers of the networks that have images."""
    for network in networks:
        network.zero_grad()
    found = fused.forward(images) if fused else {number: networks[number](images[number]) for number in images}
    outputs = {
        number: torch.stack([each for each in output if each is not None]) if isinstance(output, tuple) else output
        for number, output in found.items()
    }
    losses = {number: output.sin().sum() for number, output in outputs.items()}
    if fused:
        fused.backward(losses)
    else:
        torch.autograd.backward(tuple(losses.values()))
    return [
        [outputs[number].detach().clone()]
        + [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for parameter in networks[number].parameters()
            if parameter.requires_grad
        ]
        + [buffer.clone() for buffer in networks[number].buffers()]
        for number in images
    ]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chunks", [1, 2])
def test_each_network_computes_what_it_does_by_itself(norm: str, training: bool, chunks: int) -> None:
    networks = [network.double().train(training) for network in build(3, norm=norm, chunks=chunks)]
    images = draw_images(3, torch.float64)
    alone = compute(copy.deepcopy(networks), images, None)
    together = compute(networks, images, FusedNetworks(networks))
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other)
        for expected, value in zip(one, other, strict=True):
            assert torch.allclose(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"depth": 14}, {"depth": 50, "width": 0.125}, {"width": 0.3}, {"gn_groups": 2}],
)
def test_other_networks(settings: dict[str, Any]) -> None:
    networks = [network.double() for network in build(2, norm="sn[in,ln,bn,gn]", **settings)]
    images = draw_images(2, torch.float64)
    alone = compute(copy.deepcopy(networks), images, None)
    for one, other in zip(alone, compute(networks, images, FusedNetworks(networks)), strict=True):
        for expected, value in zip(one, other, strict=True):
            assert torch.allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deep_supervision": 0.4, "decoder_norm": "none"},
        {"head": "deeplabv3", "output_stride": 2, "freeze_stages": 2},
        {"head": "deeplabv3", "deep_supervision": 0.4, "depth": 14},
    ],
)
def test_segmentation_networks(settings: dict[str, Any], training: bool) -> None:
    networks = [
        network.double().train(training) for network in build(3, task="segmentation", dataset="scenes", **settings)
    ]
    images = draw_images(3, torch.float64, channels=3, size=16)
    alone = compute(copy.deepcopy(networks), images, None)
    assert alone[0][0].shape[0] == (2 if training and "deep_supervision" in settings else 1)
    for one, other in zip(alone, compute(networks, images, FusedNetworks(networks)), strict=True):
        assert len(one) == len(other)
        for expected, value in zip(one, other, strict=True):
            assert torch.allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("norm", ["sn", "bn"])
def test_the_bits_of_a_network_do_not_depend_on_the_others(norm: str, count: int) -> None:
    networks, images = build(count, norm=norm), draw_images(count)
    expected = compute(networks, images, FusedNetworks(networks))
    for number in (0, count - 1):
        others = build(count, norm=norm, initialization="orthogonal")
        others[number] = build(count, norm=norm)[number]
        (value,) = compute(others, {number: images[number]}, FusedNetworks(others))
        assert all(map(torch.equal, value, expected[number]))


@pytest.mark.parametrize("norm", ["sn", "ssn", "bn", "gn", "in"])
def test_a_network_that_is_not_finite_leaves_the_others_alone(norm: str) -> None:
    networks, images = build(4, norm=norm), draw_images(4)
    fused = FusedNetworks(networks)
    expected = compute(networks, images, fused)
    for parameter in networks[1].parameters():
        parameter.data.fill_(torch.nan)
    images[2] = images[2] * torch.inf
    values = compute(networks, images, fused)
    assert not values[1][0].isfinite().any()
    parameters = 1 + len(list(networks[0].parameters()))
    for number in (0, 3):
        assert all(map(torch.equal, values[number][:parameters], expected[number][:parameters]))
        assert all(value.isfinite().all() for value in values[number])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("norm", ["sn", "ssn", "bn", "gn"])
def test_on_a_gpu_each_network_computes_what_it_does_by_itself(norm: str) -> None:
    networks = [network.double().cuda() for network in build(3, norm=norm)]
    images = {number: image.cuda() for number, image in draw_images(3, torch.float64).items()}
    alone = compute(copy.deepcopy(networks), images, None)
    for one, other in zip(alone, compute(networks, images, FusedNetworks(networks)), strict=True):
        for expected, value in zip(one, other, strict=True):
            assert torch.allclose(value, expected, rtol=1e-9, atol=1e-11)


def test_networks_that_cannot_be_computed_as_one_are_named() -> None:
    with pytest.raises(NotFusableError, match=r"bn1: BatchNorm2d\(.*\) and SwitchNorm2d"):
        FusedNetworks([*build(1, chunks=1), *build(1, chunks=1, norm="bn")])
    with pytest.raises(NotFusableError, match="layer1: other layers"):
        FusedNetworks([*build(1), *build(1, depth=14)])
    with pytest.raises(NotFusableError, match="Dropout"):
        FusedNetworks(build(2, dropout=0.5))
    with pytest.raises(NotFusableError, match=r"conv1: Conv2d\(1, 16.* and Conv2d\(1, 8"):
        FusedNetworks([*build(1), *build(1, width=1.0)])
    networks: Any = build(2)
    networks[1].layer2[0].conv1.stride = (1, 1)
    with pytest.raises(NotFusableError, match=r"layer2.0.conv1: .*stride=\(1, 1\)"):
        FusedNetworks(networks)
    networks = build(2)
    networks[1].fc.weight.requires_grad_(False)
    with pytest.raises(NotFusableError, match="only some"):
        FusedNetworks(networks)


@pytest.mark.parametrize("change", ["module hook", "parameter hook", "weight norm", "eps"])
def test_networks_that_do_more_than_their_classes_are_refused(change: str) -> None:
    """A network of a user's own may: computed as one, it would silently be another network."""
    networks: Any = build(2, chunks=1, norm="bn")
    if change == "module hook":
        networks[1].layer1[0].relu.register_forward_hook(lambda *_: None)
    elif change == "parameter hook":
        networks[1].fc.weight.register_hook(lambda gradient: 2 * gradient)
    elif change == "weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(networks[1].conv1)
    else:
        networks[1].bn1.eps = 1.0
    with pytest.raises(NotFusableError):
        FusedNetworks(networks)


def test_a_network_that_was_moved_is_noticed() -> None:
    networks = build(3)
    fused = FusedNetworks(networks)
    assert fused.is_intact
    networks[1].double().float()  # as to another device and back
    assert not fused.is_intact
