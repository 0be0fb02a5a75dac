"""Writes studies to disk as training would, with a known truth planted in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from study.config import StudyConfig, study_from_dict
from study.plan import PlannedTrial, plan_trials
from study.record.files import SCHEMA, StudyFolder, TrialFolder, file_facts, write_json, write_yaml

SWITCH_SCHEMA = pa.schema([
    ("trial_id", pa.string()), ("replicate", pa.int32()), ("epoch", pa.int32()), ("step", pa.int64()),
    ("layer", pa.string()), ("layer_index", pa.int32()), ("depth_fraction", pa.float64()), ("stage", pa.int32()),
    ("role", pa.string()), ("receptive_field", pa.int32()), ("statistic", pa.string()),
    ("normalizer", pa.string()), ("weight", pa.float32()),
])  # fmt: skip
Effect = Callable[[PlannedTrial], float]


def build_study(replicates: int = 3, questions: tuple[str, ...] = ("useful", "impacts"), **factors: Any) -> StudyConfig:
    data: dict[str, Any] = {
        "name": "planted", "scale": "tests", "title": "A planted study", "question": "Is the planted truth found?",
        "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
        "factors": factors, "analysis": {"questions": list(questions)},
    }  # fmt: skip
    return study_from_dict(data, "test")


@dataclass(kw_only=True)
class Truth:
    """What the synthetic world is like. Effects are functions of a trial; noise is per trial, seeds' per replicate."""

    accuracy: Effect = lambda trial: 0.9
    accuracy_noise: float = 0.004
    bn_logit: Effect = lambda trial: 0.0
    logit_noise: float = 0.15
    seed: int = 0


def write_study(
    path: Path,
    study: StudyConfig,
    truth: Truth | None = None,
    *,
    only: Callable[[PlannedTrial], bool] = lambda trial: True,
    diverged: Callable[[PlannedTrial], bool] = lambda trial: False,
) -> StudyFolder:
    """A study on disk; `only` says which trials have a result, `diverged` which of them diverged."""
    folder = StudyFolder(path)
    provenance = {
        "command": "python run_study.py --study planted", "commit": "abc123", "versions": {"torch": "2.11.0"},
        "platform": "Linux", "python": "3.11", "created": "2026-01-01T00:00:00",
    }  # fmt: skip
    write_yaml(folder.config, {"study": study.model_dump(mode="json"), "provenance": provenance})
    for trial in plan_trials(study):
        if only(trial):
            write_trial(folder, trial, truth or Truth(), "diverged" if diverged(trial) else "done")
    return folder


def write_trial(folder: StudyFolder, trial: PlannedTrial, truth: Truth, status: str = "done") -> TrialFolder:
    record = folder.trial(trial.trial_id, trial.replicate)
    record.path.mkdir(parents=True)
    random = np.random.default_rng([truth.seed, *trial.trial_id.encode(), trial.replicate])
    shared = np.random.default_rng([truth.seed, trial.replicate])
    accuracy = truth.accuracy(trial) + shared.normal(0, 0.01) + random.normal(0, truth.accuracy_noise)
    write_yaml(record.trial, {
        "trial_id": trial.trial_id, "replicate": trial.replicate, "study": "planted", "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"), "pool": list(trial.pool),
        "command": f"python run_study.py --study planted --set replicates={trial.replicate + 1}",
    })  # fmt: skip
    write_json(record.environment, {"device": "cpu", "commit": "abc123", "host": "somewhere", "threads": 1})
    record.metrics.write_text("".join(_metric_lines(trial, accuracy)), encoding="utf-8")
    rows = _switch_rows(trial, truth, random)
    table = pa.table(
        {name: [row[column] for row in rows] for column, name in enumerate(SWITCH_SCHEMA.names)}, schema=SWITCH_SCHEMA
    )
    pq.write_table(table, record.switch_weights)
    write_result(record, trial, status, accuracy)
    return record


def write_result(record: TrialFolder, trial: PlannedTrial, status: str, accuracy: float | None) -> None:
    value = None if status == "diverged" else accuracy
    metrics = {
        "val_accuracy": value, "test_accuracy": value, "train_accuracy": value,
        "val_loss": None if value is None else 2 * (1 - value), "test_loss": None if value is None else 2 * (1 - value),
        "train_loss": None if value is None else 1 - value, "fit_loss": None if value is None else 1 - value,
        "fit_accuracy": None if value is None else (1 + value) / 2,
        "generalization_gap": None if value is None else (1 - value) / 2,
    }  # fmt: skip
    files = (record.trial, record.metrics, record.switch_weights)
    write_json(record.result, {
        "schema": SCHEMA, "trial_id": trial.trial_id, "replicate": trial.replicate, "status": status,
        "reason": "loss is nan at step 3" if status == "diverged" else None, "epochs": 4, "steps": 12, "seconds": 1.5,
        "attempts": 1, "metrics": metrics, "parameters": 1000, "norm_layers": 7,
        "statistics_batch": trial.statistics_batch, "files": {file.name: file_facts(file) for file in files},
    })  # fmt: skip


def _metric_lines(trial: PlannedTrial, accuracy: float) -> list[str]:
    lines = []
    for epoch in range(trial.config.epochs + 1):
        value = accuracy + (0.1 - accuracy) * 0.4**epoch
        row = {"schema": 1, "epoch": epoch, "step": 3 * epoch}
        lines += [json.dumps({**row, "name": name, "value": level}) + "\n"
                  for name, level in (("val_accuracy", value), ("train_loss", 2 * (1 - value)))]  # fmt: skip
    return lines


def _switch_rows(trial: PlannedTrial, truth: Truth, random: np.random.Generator) -> list[tuple[Any, ...]]:
    if trial.config.norm in ("bn", "gn", "in", "ln"):
        return []
    count = trial.config.depth - 1
    offset = random.normal(0, truth.logit_noise, (2, len(trial.pool)))
    rows = []
    for layer in range(count):
        fraction = layer / max(1, count - 1)
        noise = offset + random.normal(0, truth.logit_noise, (2, len(trial.pool)))
        for epoch in range(trial.config.epochs + 1):
            grown = 1 - 0.5**epoch
            for index, statistic in enumerate(("mean", "var")):
                planted = {"bn": truth.bn_logit(trial) * (1 + index) / 1.5, "ln": fraction}
                weights = np.exp(grown * (noise[index] + [planted.get(name, 0.0) for name in trial.pool]))
                rows += [
                    (trial.trial_id, trial.replicate, epoch, 3 * epoch, f"layer{layer}", layer, fraction,
                     min(layer, 1 + int(3 * fraction)), "main", 3 + 2 * layer, statistic, name, float(weight))
                    for name, weight in zip(trial.pool, weights / weights.sum(), strict=True)
                ]  # fmt: skip
    return rows


GRID: dict[str, Any] = {
    "norm": ["sn", "bn"], "depth": [8, 14], "batch_size": [2, 16], "initialization": ["he_normal", "xavier_uniform"],
}  # fmt: skip


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished study, read only: sn gains 0.03 over bn; B moves the logit of bn by 1.5, depth by 1."""
    truth = Truth(
        accuracy=lambda trial: 0.93 if trial.config.norm == "sn" else 0.90,
        bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16) + (trial.config.depth == 14),
    )
    return write_study(tmp_path_factory.mktemp("planted"), build_study(replicates=4, **GRID), truth)
