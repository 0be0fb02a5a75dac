"""The table of switch weights: which layers are in it, and that each row is of the layer that it names."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.analysis.weight_tables import read_switch_weights
from study.models import build_network, trace_geometry
from study.norms import switch_weights
from study.record.switch_weights import parquet_bytes, select_switch_layers, snapshot
from study.training.recorder import Recorder
from tests.models.samples import config_of

POOL = ("in", "ln", "bn")
MIXED = {
    "all": {"norm": "sn"},
    "backbone": {"norm": "sn", "fpn_norm": "bn", "box_head_norm": "gn", "mask_head_norm": "none"},
    "heads": {"norm": "bn", "fpn_norm": "sn", "box_head_norm": "bn", "mask_head_norm": "ssn"},
    "nothing": {"norm": "gn"},
}


def recorder_of(case: str) -> tuple[torch.nn.Module, Any]:
    """A detector of random choices and a recorder that has seen it once."""
    network = build_network(config_of("mask_rcnn", logit_init="random", **MIXED[case]), seed=0)
    layers = select_switch_layers(network, trace_geometry(network))
    recorder: Any = Recorder(None, SimpleNamespace(pool=POOL), layers, None, 1, None, None)  # type: ignore[arg-type]
    recorder.history = [snapshot(network, layers)]
    return network, recorder


@pytest.mark.parametrize("case", MIXED)
def test_rows_are_of_the_layers_that_choose_and_hold_what_they_chose(case: str) -> None:
    network, recorder = recorder_of(case)
    history = torch.stack(recorder.history).numpy()
    table = read_switch_weights(io.BytesIO(parquet_bytes(history, [0], recorder.layers, POOL, "trial", 0)))
    weights = switch_weights(network)
    rows = table.to_pylist()
    assert {row["layer"] for row in rows} == set(weights)
    for row in rows:
        chosen = getattr(weights[row["layer"]], row["statistic"])
        assert row["weight"] == pytest.approx(float(chosen[POOL.index(row["normalizer"])]))
        assert (row["receptive_field"] is None) == row["role"].endswith("head")


def test_means_are_of_the_backbone_and_those_of_heads_have_their_name() -> None:
    network, recorder = recorder_of("all")
    weights = switch_weights(network)
    means = recorder.network_means(0)
    assert {name.rsplit("/", 2)[0] for name in means} == {
        "switch",
        *(f"switch/{r}" for r in ("fpn", "box_head", "mask_head")),
    }

    def mean(prefix: str) -> float:
        return float(torch.stack([w.var[2] for layer, w in weights.items() if layer.startswith(prefix)]).mean())

    assert means["switch/var/bn"] == pytest.approx(mean("backbone.body"))
    assert means["switch/mask_head/var/bn"] == pytest.approx(mean("roi_heads.mask_head"))
    assert recorder.stage_means(0)["switch/stage2/var/bn"] == pytest.approx(mean("backbone.body.layer2"))
    assert {name.split("/")[1] for name in recorder.stage_means(0)} == {"stage0", "stage1", "stage2", "stage3"}


def test_a_backbone_that_does_not_choose_has_no_mean() -> None:
    _, recorder = recorder_of("heads")
    assert {name.rsplit("/", 2)[0] for name in recorder.network_means(0)} == {"switch/fpn", "switch/mask_head"}
    assert recorder.stage_means(0) == {}
    assert recorder_of("nothing")[1].network_means(0) == {}
