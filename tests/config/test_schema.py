"""The schema: ids, documentation of every setting, and what follows from the settings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel

from study.config.schema import SECTIONS, Range, StudyConfig, TrialConfig, trial_id
from study.plan.loading import load_study


# Identity: these ids name folders and W&B runs of finished studies. They change only on purpose.
@pytest.mark.parametrize(
    ("fields", "factors", "expected"),
    [
        ({}, [], "44136fa3"),
        ({"norm": "bn"}, ["norm"], "bn-6b737c3b"),
        ({"norm": "sn[in,ln]", "batch_size": 2}, ["norm", "batch_size"], "sn-in-ln-batch_size2-29f1da5e"),
        ({"depth": 8, "initialization": "orthogonal"}, ["depth", "initialization"], "depth8-orthogonal-bbab58b9"),
    ],
)
def test_trial_ids_are_pinned(fields: dict[str, object], factors: list[str], expected: str) -> None:
    assert trial_id(TrialConfig(**fields), factors) == expected  # type: ignore[arg-type]


def test_a_default_spelled_out_does_not_change_the_id() -> None:
    assert trial_id(TrialConfig(epochs=100), []) == trial_id(TrialConfig(), [])


def test_every_field_of_a_trial_is_part_of_its_id() -> None:
    other = {"dataset": "cifar10", "train_samples": 5, "validation_fraction": 0.3, "augmentation": "none", "depth": 8,
             "width": 0.5, "zero_last_gamma": False, "dropout": 0.1, "initialization": "orthogonal", "norm": "bn",
             "batch_size": 2, "chunks": 1, "fixed_gradient_batch": 64, "logit_init": "random",
             "norm_momentum": 0.2, "bn_statistics": "batch", "sync_statistics": True, "correction": 1, "gn_groups": 4,
             "epochs": 3,
             "solver": "adam", "learning_rate": 0.2, "scale_learning_rate": False, "momentum": 0.8, "weight_decay": 0.0,
             "decay": "step", "warmup_epochs": 1.0, "logit_learning_rate": 2.0, "logit_weight_decay": 0.1,
             "logit_gradient_clip": 1.0, "precision": "bfloat16", "color": "jitter", "mild_epochs": 5,
             "task": "segmentation", "head": "fcn", "output_stride": 8, "deep_supervision": 0.4, "box_head": "mlp",
             "decoder_norm": "gn", "fpn_norm": "gn", "box_head_norm": "gn", "mask_head_norm": "gn", "freeze_stages": 2,
             "start_rule": "argmax", "start_source": "x", "start_epoch": 2, "start_fresh": True, "start_thaw": True,
             "epoch_steps": 100, "norm_weight_decay": 0.0, "bias_weight_decay": 0.0, "bias_learning_rate": 2.0,
             "decay_milestones": (0.5,), "warmup_start": 0.3}  # fmt: skip
    assert other.keys() == TrialConfig.model_fields.keys()
    ids = {trial_id(TrialConfig(**{field: value}), []) for field, value in other.items()}  # type: ignore[arg-type]
    assert len(ids) == len(other)


@pytest.mark.parametrize("model", [StudyConfig, Range, *SECTIONS.values()])
def test_every_setting_is_documented(model: type[BaseModel]) -> None:
    assert not [name for name, field in model.model_fields.items() if not field.description]


def test_classifiers_are_compared_by_accuracy_and_other_tasks_by_their_score() -> None:
    assert load_study("distinct", "smoke").metric == "val_accuracy"
    assert load_study("distinct", "smoke", ["task=detection", "dataset=scenes"]).metric == "val_score"
    assert (
        load_study("distinct", "smoke", ["blocks=[]", "factors.task=[classification, detection]"]).metric == "val_score"
    )
    assert load_study("distinct", "smoke", ["analysis.metric=test_score"]).metric == "test_score"


def test_planning_imports_no_torch() -> None:
    modules = "study.plan.trials, study.record.layout, study.sweep.executors.base, study.plan.job, study.cli.main"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
