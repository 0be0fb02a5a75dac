"""The table of switch weights and their means: which layers they include, and that each value is of the right layer."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from study.analysis.weight_tables import read_switch_weights
from study.config.choice_space import NORMALIZATION
from study.models import build_network, trace_geometry
from study.models.geometry import LayerGeometry
from study.norms import switch_weights
from study.record.switch_weights import (
    SWITCH_WEIGHTS_SCHEMA,
    average_network,
    average_stages,
    encode_parquet,
    read_last_weights,
    select_switch_layers,
    snapshot_weights,
)
from tests.models.samples import build_config

POOL = ("in", "ln", "bn")
MIXED = {
    "all": {"norm": "sn"},
    "backbone": {"norm": "sn", "fpn_norm": "bn", "box_head_norm": "gn", "mask_head_norm": "none"},
    "heads": {"norm": "bn", "fpn_norm": "sn", "box_head_norm": "bn", "mask_head_norm": "ssn"},
    "nothing": {"norm": "gn"},
}


def build_case(case: str) -> tuple[nn.Module, list[LayerGeometry], Tensor]:
    """A detector with random switch weights, its switch layers, and their weights."""
    network = build_network(build_config("mask_rcnn", logit_init="random", **MIXED[case]), seed=0)
    layers = select_switch_layers(network, trace_geometry(network))
    return network, layers, snapshot_weights(network, layers, NORMALIZATION)


@pytest.mark.parametrize("case", MIXED)
def test_the_table_has_the_weights_of_all_switch_layers(case: str) -> None:
    network, layers, snapshot = build_case(case)
    table = read_switch_weights(
        io.BytesIO(encode_parquet(snapshot[None].numpy(), [0], layers, POOL, NORMALIZATION, "trial", 0))
    )
    weights = switch_weights(network)
    rows = table.to_pylist()
    assert {row["layer"] for row in rows} == set(weights)
    for row in rows:
        chosen = getattr(weights[row["layer"]], row["statistic"])
        assert row["weight"] == pytest.approx(float(chosen[POOL.index(row["normalizer"])]))
        assert (row["receptive_field"] is None) == row["role"].endswith("head")


@pytest.mark.parametrize("case", MIXED)
def test_a_table_that_was_written_without_places_gets_them_from_paths_and_roles(case: str, tmp_path: Path) -> None:
    _, layers, snapshot = build_case(case)
    history = torch.stack([snapshot, snapshot]).numpy()
    content = encode_parquet(history, [0, 1], layers, POOL, NORMALIZATION, "trial", 0)
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    new.write_bytes(content)
    table = pq.read_table(pa.BufferReader(content))
    assert table.column_names == SWITCH_WEIGHTS_SCHEMA.names
    pq.write_table(table.drop_columns("place"), old)
    assert read_switch_weights(old).to_pylist() == read_switch_weights(new).to_pylist() == table.to_pylist()
    if not layers:
        return
    (rows, weights), (old_rows, old_weights) = read_last_weights(new), read_last_weights(old)
    assert old_rows == rows
    assert (old_weights == weights).all()
    assert [row["place"] for row in rows] == [layer.place for layer in layers]


def test_means_are_separate_for_the_backbone_its_stages_and_each_head() -> None:
    network, layers, snapshot = build_case("all")
    weights = switch_weights(network)
    means, stages = (
        average_network(snapshot, layers, POOL, NORMALIZATION),
        average_stages(snapshot, layers, POOL, NORMALIZATION),
    )
    heads = {f"switch/{role}" for role in ("fpn", "box_head", "mask_head")}
    assert {name.rsplit("/", 2)[0] for name in means} == {"switch", *heads}

    def mean(prefix: str) -> float:
        return float(torch.stack([w.var[2] for layer, w in weights.items() if layer.startswith(prefix)]).mean())

    assert means["switch/var/bn"] == pytest.approx(mean("backbone.body"))
    assert means["switch/mask_head/var/bn"] == pytest.approx(mean("roi_heads.mask_head"))
    assert stages["switch/stage2/var/bn"] == pytest.approx(mean("backbone.body.layer2"))
    assert {name.split("/")[1] for name in stages} == {"stage0", "stage1", "stage2", "stage3"}


def test_a_backbone_without_switch_layers_has_no_mean() -> None:
    _, layers, snapshot = build_case("heads")
    means = average_network(snapshot, layers, POOL, NORMALIZATION)
    assert {name.rsplit("/", 2)[0] for name in means} == {"switch/fpn", "switch/mask_head"}
    assert average_stages(snapshot, layers, POOL, NORMALIZATION) == {}
    _, layers, snapshot = build_case("nothing")
    assert average_network(snapshot, layers, POOL, NORMALIZATION) == {}
