"""The contents of synthetic records, whether they are written to disk or kept in memory: layers, metrics and curves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from study.analysis.statistics.intervals import Floats
from study.analysis.weight_tables import BACKBONE
from study.bench.synthetic_records.truth import SimulatedRun
from study.config.layer_places import name_place
from study.config.schema import TrialConfig
from study.plan.margins import MAIN_METRICS
from study.plan.trials import PlannedTrial

DIVERGED_REASON, FAILED_REASON = "loss is nan at step 3", "out of memory"
HEAD_LAYERS = {  # one norm of each head, by role
    "decoder": "decoder.conv.1",
    "fpn": "backbone.fpn.inner_blocks.0.1",
    "box_head": "roi_heads.box_head.0.1",
    "mask_head": "roi_heads.mask_head.0.1",
}


def build_norm_layers(config: TrialConfig) -> list[Any]:
    """The norm layers of a small ResNet, and one of each head, with the attributes of `LayerGeometry`.

    `LayerGeometry` itself needs torch. Backbones of all tasks have the paths of a classifier's.
    """
    backbone = [("bn1", 0, BACKBONE)]
    for stage in (1, 2, 3):
        for block in range((config.depth - 2) // 6):
            kinds = ("bn1", "bn2", "downsample.1") if stage > 1 and block == 0 else ("bn1", "bn2")
            backbone += [(f"layer{stage}.{block}.{kind}", stage, BACKBONE) for kind in kinds]
    heads = [(layer, 4, role) for role, layer in HEAD_LAYERS.items() if role in config.norms]
    return [
        SimpleNamespace(
            layer=layer, layer_index=index, stage=stage, place=name_place(layer, role), role=role,
            depth_fraction=index / (len(backbone) - 1) if role == BACKBONE else 0.0,
            receptive_field=3 + 2 * index if role == BACKBONE else None,
        )
        for index, (layer, stage, role) in enumerate([*backbone, *heads])
    ]  # fmt: skip


def compute_metrics(task: str, score: float | None) -> dict[str, float | None]:
    """The final metrics in result.json; without a score, all are None."""
    value = float("nan") if score is None else score
    main = MAIN_METRICS[task]
    metrics = {
        f"val_{main}": value, "val_loss": 2 * (1 - value), "train_loss": 2 * (1 - value),
        f"fit_{main}": (1 + value) / 2, "fit_loss": 1 - value, f"test_{main}": value, "test_loss": 2 * (1 - value),
        "val_score": value, "fit_score": (1 + value) / 2, "test_score": value, "generalization_gap": (1 - value) / 2,
    }  # fmt: skip
    if task == "classification":
        metrics["train_accuracy"] = value
    return {name: None if score is None else metric for name, metric in metrics.items()}


def compute_curves(trial: PlannedTrial, run: SimulatedRun) -> dict[str, Floats]:
    """The metrics that are logged at the end of every epoch, by name: arrays (epochs,), from 0.1 to the final value."""
    missing = 0.4 ** np.arange(len(run.history))
    missing[-1] = 0.0
    value = run.accuracy + (0.1 - run.accuracy) * missing
    curves = {
        f"val_{MAIN_METRICS[trial.config.task]}": value, "val_score": value, "val_loss": 2 * (1 - value),
        "train_loss": 2 * (1 - value), "learning_rate": np.full(len(value), 0.1),
    }  # fmt: skip
    return curves | ({"train_accuracy": value} if trial.config.task == "classification" else {})
