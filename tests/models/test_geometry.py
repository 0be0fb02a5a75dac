"""Where norm layers sit. The reference is the table of receptive fields of ResNet-50 v1."""

from __future__ import annotations

import pytest

from study.config import TrialConfig
from study.models import build_network, trace_geometry
from study.models.geometry import LayerGeometry


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
    assert places["layer2.0.downsample.1"].receptive_field == 35  # a 1x1 convolution sees no more


def test_stages_count_layers_as_published() -> None:
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
