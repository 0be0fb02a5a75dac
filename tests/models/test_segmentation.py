"""Segmentation networks: sizes, dilation, and the second decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from study.models import build_network, get_backbone
from study.models.resnet import dilate
from tests.models.samples import build_config


@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
@pytest.mark.parametrize("stride", [1, 2, 4, None])
def test_logits_have_the_size_of_the_images_at_any_stride(head: str, stride: int | None) -> None:
    network = build_network(build_config(head, output_stride=stride), seed=0)
    images = torch.randn(2, 3, 36, 52)
    logits, auxiliary = network(images)
    assert logits.shape == (2, 11, 36, 52)
    assert auxiliary is None
    step = stride or 4
    assert get_backbone(network)(images)["last"].shape == (2, 16, 36 // step, 52 // step)


def test_the_second_decoder_is_used_only_in_training() -> None:
    network = build_network(build_config("fcn", deep_supervision=0.4), seed=0)
    images = torch.randn(2, 3, 32, 32)
    assert network(images)[1].shape == (2, 11, 32, 32)
    assert network.eval()(images)[1] is None


@pytest.mark.parametrize(("stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_dilation_equals_torchvisions(stride: int, replaced: list[bool]) -> None:
    with torch.device("meta"):
        reference = resnet50(replace_stride_with_dilation=replaced)
        ours = resnet50()
    dilate(ours, stride, stem_stride=4)
    for mine, theirs in zip(ours.modules(), reference.modules(), strict=True):
        if isinstance(theirs, nn.Conv2d):
            assert (mine.stride, mine.padding, mine.dilation) == (theirs.stride, theirs.padding, theirs.dilation)


@pytest.mark.parametrize(
    ("depth", "stride", "rates"), [(18, 8, [12, 24, 36]), (18, 16, [6, 12, 18]), (8, 2, [4, 8, 12])]
)
def test_rates_follow_the_stride(depth: int, stride: int, rates: list[int]) -> None:
    network = build_network(build_config("deeplabv3", depth=depth, width=1.0, output_stride=stride), seed=0)
    assert [branch[0].dilation[0] for branch in network.decoder.pyramid.atrous] == rates


def test_dropout_precedes_the_classifying_convolution() -> None:
    network = build_network(build_config("deeplabv3", dropout=0.3), seed=0)
    assert [type(layer) for layer in list(network.decoder)[-2:]] == [nn.Dropout, nn.Conv2d]
