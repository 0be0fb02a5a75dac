"""The positions of norm layers. The reference is the table of receptive fields of ResNet-50 v1."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from study.config.layer_places import name_place
from study.config.schema import HEADS, TrialConfig
from study.models import build_network, trace_geometry
from study.models.geometry import LayerGeometry, get_backbone_path, is_norm
from study.norms.official import OfficialResNet
from tests.models.samples import build_config


@cache
def geometry(depth: int, norm: str = "sn", dataset: str = "imagenet") -> list[LayerGeometry]:
    return trace_geometry(build_network(TrialConfig(dataset=dataset, depth=depth, norm=norm, chunks=1), seed=0))


@pytest.mark.parametrize(("depth", "count"), [(18, 20), (34, 36), (50, 53), (101, 104)])
def test_counts_of_norm_layers(depth: int, count: int) -> None:
    assert len(geometry(depth)) == count


def test_receptive_fields_of_resnet50_block_outputs() -> None:
    places = {place.layer: place for place in geometry(50)}
    outputs = {
        stage: [places[f"layer{stage}.{block}.bn3"].receptive_field for block in range(blocks)]
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
    }
    assert places["bn1"].receptive_field == 7
    assert outputs[1] == [19, 27, 35]
    assert outputs[2] == [43, 59, 75, 91]
    assert (outputs[3][0], outputs[3][-1]) == (107, 267)
    assert outputs[4] == [299, 363, 427]
    assert places["layer2.0.downsample.1"].receptive_field == 35  # a 1x1 convolution does not widen it


def test_stages_have_the_published_number_of_layers() -> None:
    stages = [place.stage for place in geometry(50)]
    assert [stages.count(stage) for stage in range(5)] == [1, 10, 13, 19, 10]
    assert {place.role for place in geometry(50)} == {"backbone"}


@pytest.mark.parametrize("norm", ["bn", "gn", "in", "ln", "sn-tied", "ssn"])
def test_geometry_does_not_depend_on_the_norm(norm: str) -> None:
    assert geometry(14, norm, "digits") == geometry(14, "sn", "digits")


def test_depth_fractions_run_from_zero_to_one_in_order_of_execution() -> None:
    places = geometry(20, dataset="cifar10")
    assert [place.layer_index for place in places] == list(range(len(places)))
    assert (places[0].depth_fraction, places[-1].depth_fraction) == (0, 1)
    assert places[0].layer == "bn1"
    assert places[1].layer == "layer1.0.bn1"


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "faster_rcnn", "mask_rcnn"])
def test_every_norm_layer_has_a_role_and_a_depth_within_it(head: str) -> None:
    network = build_network(build_config(head, norm="sn", deep_supervision=0.4), seed=0)
    places = trace_geometry(network)
    assert [place.layer_index for place in places] == list(range(len(places)))
    assert {place.layer for place in places} == {name for name, module in network.named_modules() if is_norm(module)}
    roles = {role: [place for place in places if place.role == role] for role in build_config(head).norms}
    assert sum(map(len, roles.values())) == len(places)
    for layers in roles.values():
        assert (layers[0].depth_fraction, layers[-1].depth_fraction) == (0, 1)
    assert {place.stage for place in places if place.role != "backbone"} == {4}


BLOCKS = {"basic": ["norm1", "norm2"], "bottleneck": ["norm1", "norm2", "norm3"]}
HEAD_PLACES = {
    "fpn": {"lateral", "output"},
    "box_head": {f"norm{number}" for number in (1, 2, 3, 4)},
    "mask_head": {f"norm{number}" for number in (1, 2, 3, 4)},
    "decoder": {
        "auxiliary", "conv", "project", "pyramid_point", "pyramid_pool",
        *(f"pyramid_atrous{number}" for number in (1, 2, 3)),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "dataset", "block", "projected"),
    [
        (8, "digits", "basic", {2, 3}), (14, "digits", "basic", {2, 3}), (18, "imagenet", "basic", {2, 3, 4}),
        (34, "imagenet", "basic", {2, 3, 4}), (50, "imagenet", "bottleneck", {1, 2, 3, 4}),
    ],
)  # fmt: skip
def test_every_block_of_a_backbone_has_the_same_places(
    depth: int, dataset: str, block: str, projected: set[int]
) -> None:
    blocks: dict[tuple[int, str], list[str]] = {}
    for layer in geometry(depth, dataset=dataset):
        blocks.setdefault((layer.stage, ".".join(layer.layer.split(".")[:2])), []).append(layer.place)
    assert blocks.pop((0, "bn1")) == ["stem"]
    for (stage, path), places in blocks.items():
        shortcut = ["shortcut"] if path.endswith(".0") and stage in projected else []
        assert places == [*BLOCKS[block], *shortcut], path


def test_networks_of_other_depth_have_the_same_places_in_each_stage() -> None:
    def of_stages(depth: int) -> set[tuple[int, str]]:
        return {(layer.stage, layer.place) for layer in geometry(depth, dataset="digits")}

    assert of_stages(8) == of_stages(14) == of_stages(20)
    assert {(layer.stage, layer.place) for layer in geometry(50)} == {
        (layer.stage, layer.place) for layer in geometry(101)
    }


@pytest.mark.parametrize("head", [head for heads in HEADS.values() for head in heads])
@pytest.mark.parametrize("depth", [8, 50])
def test_every_norm_of_a_head_has_a_place_with_a_meaning(head: str, depth: int) -> None:
    width = 0.25 if depth == 8 else 0.125
    config = build_config(head, norm="sn", depth=depth, width=width, deep_supervision=0.4)
    roles: dict[str, list[str]] = {}
    for layer in trace_geometry(build_network(config, seed=0)):
        roles.setdefault(layer.role, []).append(layer.place)
        assert layer.place == name_place(layer.layer, layer.role)
    assert set(roles.pop("backbone")) == {"stem", *BLOCKS["basic" if depth == 8 else "bottleneck"], "shortcut"}
    for role, places in roles.items():
        assert set(places) <= HEAD_PLACES[role]
        if role != "fpn":  # which has one of each at every level
            assert len(set(places)) == len(places)
    if head == "deeplabv3":
        assert set(roles["decoder"]) == HEAD_PLACES["decoder"]
    elif head == "fcn":
        assert roles["decoder"] == ["conv", "auxiliary"]
    else:
        assert set(roles) == set(config.norms) - {"backbone"}
        assert {role: set(places) for role, places in roles.items()} == {role: HEAD_PLACES[role] for role in roles}


@pytest.mark.parametrize("version", [1, 2])
def test_published_networks_have_the_places_of_ours(version: int) -> None:
    found = trace_geometry(OfficialResNet(depth=50, version=version))
    places = {layer.place for layer in found}
    assert places - {"output"} == {"stem", *BLOCKS["bottleneck"]} | ({"shortcut"} if version == 1 else set())
    assert [layer.layer for layer in found if layer.place == "output"] == (["layer4.bn_out"] if version == 2 else [])


def test_the_place_in_a_network_that_is_not_known_is_the_last_component_of_the_path() -> None:
    network = nn.Sequential()
    network.add_module("first", nn.BatchNorm2d(3))
    network.add_module("layer1", nn.Sequential())
    network.get_submodule("layer1").add_module("scale", nn.BatchNorm2d(3))
    assert [(layer.place, layer.role, layer.stage) for layer in trace_geometry(network)] == [
        ("first", "elsewhere", 2), ("scale", "backbone", 1),
    ]  # fmt: skip
    assert name_place("bn1", "elsewhere") == "bn1"  # what is not a backbone has no stem


@pytest.mark.parametrize("head", ["fcn", "mask_rcnn"])
def test_the_geometry_of_a_backbone_does_not_depend_on_the_task(head: str) -> None:
    def of_backbone(head: str | None) -> list[tuple[object, ...]]:
        places = trace_geometry(build_network(build_config(head), seed=0))
        return [
            (get_backbone_path(p.layer), p.layer_index, p.depth_fraction, p.stage, p.receptive_field)
            for p in places if p.role == "backbone"
        ]  # fmt: skip

    assert of_backbone(head) == of_backbone(None)


def test_layers_behind_global_or_region_pooling_have_no_receptive_field() -> None:
    decoder = trace_geometry(build_network(build_config("deeplabv3"), seed=0))
    unbounded = {place.layer.removeprefix("decoder.") for place in decoder if place.receptive_field is None}
    assert unbounded == {"pyramid.pool.1.1", "project.1", "conv.1"}
    detector = trace_geometry(build_network(build_config("mask_rcnn"), seed=0))
    assert {p.role for p in detector if p.receptive_field is None} == {"box_head", "mask_head"}


@pytest.mark.parametrize(("head", "stride"), [("fcn", 1), ("fcn", 2), ("faster_rcnn", None)])
def test_receptive_fields_are_as_wide_as_gradients(head: str, stride: int | None) -> None:
    """With positive weights and fixed statistics, every pixel in the receptive field of a layer has a gradient."""
    network = build_network(build_config(head, norm="bn", zero_last_gamma=False, output_stride=stride), seed=0).eval()
    for parameter in network.parameters():
        parameter.data.abs_().add_(0.1)
    seen: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if is_norm(module):
            module.register_forward_hook(lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0]))
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    network.backbone(images) if head == "faster_rcnn" else network(images)
    for place in trace_geometry(network):
        if place.receptive_field is None:
            continue
        maps = seen[place.layer].sum(1)[0]
        middle = maps.shape[-1] // 2
        widths = [reach(maps[middle + y, middle + x], images) for y, x in ((0, 0), (1, 1))]
        assert max(widths) == place.receptive_field, place.layer


def reach(pixel: torch.Tensor, images: torch.Tensor) -> int:
    """The number of columns from the first to the last one with a gradient."""
    (gradient,) = torch.autograd.grad(pixel, images, retain_graph=True)
    columns = gradient.abs().sum((0, 1, 2)).nonzero()
    return int(columns.max() - columns.min()) + 1
