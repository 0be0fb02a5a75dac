"""Classification trials: which settings change which numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.config.schema import RunConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.contents import read_metrics
from study.record.layout import TrialFolder
from study.tasks.base import micro_batch_momentum
from study.training.trial import run_job


def train(folder: Path, *overrides: str) -> TrialFolder:
    study = load_study("depth_vs_batch", "smoke", ["norm=sn", "batch_size=2", "epochs=2", *overrides])
    trial = plan_trials(study)[0]
    run_job(
        Job(
            trial=trial, folder=folder, study="s", run=RunConfig(), environment={"host": "h"}, command="c",
        )
    )  # fmt: skip
    record = TrialFolder(folder)
    assert record.read_result() is not None, record.state.read_text()
    return record


def curve(record: TrialFolder, name: str) -> list[Any]:
    return [row["value"] for row in read_metrics(record.metrics) if row["name"] == name]


def final_weights(record: TrialFolder) -> pd.DataFrame:
    table = pd.read_parquet(record.switch_weights)
    return table[table.epoch == table.epoch.max()]


def test_sparse_switches_end_one_hot(tmp_path: Path) -> None:
    weights = final_weights(train(tmp_path / "r0", "norm=ssn"))
    assert set(weights.weight) == {0.0, 1.0}
    assert weights.groupby(["layer", "statistic"]).weight.sum().eq(1).all()


def test_re_estimated_statistics_change_evaluation_and_not_training(tmp_path: Path) -> None:
    kinds = "moving", "batch", "batch_total"
    records = [train(tmp_path / kind / "r0", f"bn_statistics={kind}") for kind in kinds]
    for name in ("train_loss", "switch/var/bn"):
        assert curve(records[0], name) == curve(records[1], name) == curve(records[2], name)
    assert len({tuple(curve(record, "val_loss")) for record in records}) == 3


@pytest.mark.parametrize(
    ("norm", "moves"),
    [("sn", True), ("sn-tied", True), ("sn-uniform", False), ("sn-random", False)],
)
def test_fixed_switch_weights_stay_and_learned_ones_move(tmp_path: Path, norm: str, moves: bool) -> None:
    table = pd.read_parquet(train(tmp_path / "r0", f"norm={norm}").switch_weights)
    by_epoch = table.pivot_table("weight", ["layer", "statistic", "normalizer"], "epoch")
    assert ((by_epoch[2] - by_epoch[0]).abs().max() > 1e-4) == moves


def test_switch_weights_are_shared_by_all_layers_or_within_a_stage(tmp_path: Path) -> None:
    shared = final_weights(train(tmp_path / "shared" / "r0", "norm=sn-shared"))
    assert shared.groupby(["statistic", "normalizer"]).weight.nunique().eq(1).all()
    staged = final_weights(train(tmp_path / "stage" / "r0", "norm=sn-stage"))
    assert staged.groupby(["stage", "statistic", "normalizer"]).weight.nunique().eq(1).all()
    assert staged.groupby(["statistic", "normalizer"]).weight.nunique().eq(4).all()


def test_with_one_sample_the_recorded_pool_has_no_bn(tmp_path: Path) -> None:
    record = train(tmp_path / "r0", "batch_size=1")
    assert set(final_weights(record).normalizer) == {"in", "ln"}
    result = record.read_result()
    assert result is not None
    assert result["pool"] == ["in", "ln"]


def test_synchronized_statistics_on_one_device_are_those_of_one_large_batch(tmp_path: Path) -> None:
    settings = ("bn_statistics=batch", "epochs=1")
    synchronized = train(tmp_path / "sync" / "r0", "sync_statistics=true", "batch_size=1", "chunks=16", *settings)
    whole = train(tmp_path / "whole" / "r0", "batch_size=16", "chunks=1", *settings)
    for name in ("train_loss", "val_loss", "switch/var/bn"):
        assert curve(synchronized, name) == curve(whole, name)
    result = synchronized.read_result()
    assert result is not None
    assert (result["statistics_batch"], result["gradient_batch"], result["pool"]) == (16, 16, ["in", "ln", "bn"])


def test_logits_at_rate_zero_stay_and_everything_else_learns(tmp_path: Path) -> None:
    record = train(tmp_path / "r0", "logit_learning_rate=0.0")
    assert final_weights(record).weight.sub(1 / 3).abs().max() < 1e-7
    losses = curve(record, "train_loss")
    assert losses[-1] < losses[0]


def test_half_precision_trains_to_nearly_the_same_losses(tmp_path: Path) -> None:
    full = curve(train(tmp_path / "full" / "r0"), "train_loss")
    half = curve(train(tmp_path / "half" / "r0", "precision=bfloat16"), "train_loss")
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


@pytest.mark.parametrize("norm", ["gn", "in", "ln", "bn", "sn[ln,gn]", "sn-uniform[in,ln,bn,gn]", "ssn[in,ln]"])
def test_every_kind_of_norm_trains(tmp_path: Path, norm: str) -> None:
    record = train(tmp_path / "r0", f'norm=["{norm}"]', "epochs=1")
    assert len(curve(record, "val_accuracy")) == 1


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_running_statistics_move_by_the_average_over_micro_batches(momentum: float, count: int) -> None:
    statistics = [3.0 + index**2 for index in range(count)]
    running = 7.0
    for index, statistic in enumerate(statistics):
        running += micro_batch_momentum(momentum, index, count) * (statistic - running)
    assert running == pytest.approx(7.0 + momentum * (sum(statistics) / count - 7.0))
