"""Records as training leaves them, made up in five milliseconds each, with a known truth planted in them. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from study.config import StudyConfig, TrialConfig
from study.norms.names import parse_norm
from study.plan import PlannedTrial, plan_trials
from study.record.files import SCHEMA, StudyFolder, TrialFolder, file_facts, write_yaml
from study.record.switches import STATISTICS, parquet_bytes

Effect = Callable[[PlannedTrial], float]
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times faster, where PyYAML has it


@dataclass(kw_only=True)
class Truth:
    """What the synthetic world is like. Effects are functions of a trial; noise is per trial, seeds' per replicate."""

    accuracy: Effect = lambda trial: 0.9  # or mIoU, or box AP
    accuracy_noise: float = 0.004
    bn_logit: Effect = lambda trial: 0.0
    bn_logit_of_heads: float = 0.0  # on top
    logit_noise: float = 0.15
    seed: int = 0


def write_study(
    folder: StudyFolder,
    study: StudyConfig,
    truth: Truth,
    *,
    only: Callable[[PlannedTrial], bool] = lambda trial: True,
    diverged: Callable[[PlannedTrial], bool] = lambda trial: False,
) -> None:
    """A study on disk; `only` says which trials have a result, `diverged` which of them diverged."""
    provenance = {
        "command": f"python run_study.py --study {study.name}", "commit": "abc123", "versions": {"torch": "2.11.0"},
        "platform": "Linux", "python": "3.11", "created": "2026-01-01T00:00:00",
    }  # fmt: skip
    write_yaml(folder.config, {"study": study.model_dump(mode="json"), "provenance": provenance})
    for trial in plan_trials(study):
        if only(trial):
            write_trial(folder, trial, truth, "diverged" if diverged(trial) else "done")


def write_trial(folder: StudyFolder, trial: PlannedTrial, truth: Truth, status: str = "done") -> TrialFolder:
    """The record of one finished trial, its result last. In place and not synced: nobody reads it yet."""
    record = folder.trial(trial.trial_id, trial.replicate)
    record.path.mkdir(parents=True)
    random = np.random.default_rng([truth.seed, *trial.trial_id.encode(), trial.replicate])
    shared = np.random.default_rng([truth.seed, trial.replicate])
    accuracy = truth.accuracy(trial) + shared.normal(0, 0.01) + random.normal(0, truth.accuracy_noise)
    layers = _layers(trial.config)
    history = _history(trial, layers, truth, random)
    steps = [trial.steps_per_epoch * epoch for epoch in range(len(history))]
    description = _describe(trial, folder.path.name, len(layers))
    record.state.write_text(_json({"state": "running", "failures": 0, "attempt": 1, "pid": 1, "host": "somewhere"}))
    record.trial.write_text(yaml.dump(description, Dumper=_YAML_DUMPER, sort_keys=False))
    record.environment.write_text(_json({"device": "cpu", "commit": "abc123", "host": "somewhere", "threads": 1}))
    record.metrics.write_text("".join(_metric_lines(trial, accuracy, history, steps)))
    record.switch_weights.write_bytes(
        parquet_bytes(history, steps, layers, trial.pool, trial.trial_id, trial.replicate)
    )
    write_result(record, description, status, None if status == "diverged" else accuracy)
    return record


def write_result(record: TrialFolder, description: dict[str, Any], status: str, accuracy: float | None) -> None:
    """result.json, which vouches for the other files; without an accuracy all metrics are null."""
    files = (record.trial, record.environment, record.metrics, record.switch_weights)
    repeated = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "pool", "parameters", "norm_layers")
    record.result.write_text(_json({
        "schema": SCHEMA, **{name: description[name] for name in repeated}, "status": status,
        "reason": "loss is nan at step 3" if status == "diverged" else None,
        "epochs": description["config"]["epochs"], "seconds": 1.5, "attempts": 1,
        "metrics": _metrics(description["config"]["task"], accuracy),
        "notes": [], "files": {file.name: file_facts(file) for file in files},
    }))  # fmt: skip


def _describe(trial: PlannedTrial, study: str, norm_layers: int) -> dict[str, Any]:
    settings = [f"--set 'factors.{factor}={json.dumps([level])}'" for factor, level in trial.levels.items()]
    command = f"python run_study.py --study {study} --set replicates={trial.replicate + 1} {' '.join(settings)}"
    return {
        "trial_id": trial.trial_id, "replicate": trial.replicate, "study": study, "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"), "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch, "device_batch": trial.device_batch, "pool": list(trial.pool),
        "parameters": 1000, "norm_layers": norm_layers, "seeds": trial.seeds, "command": command,
    }  # fmt: skip


def _metrics(task: str, score: float | None) -> dict[str, float | None]:
    value = float("nan") if score is None else score
    name = _MAIN[task]
    metrics = {
        f"val_{name}": value, "val_loss": 2 * (1 - value), "train_loss": 1 - value, f"fit_{name}": (1 + value) / 2,
        "fit_loss": 1 - value, f"test_{name}": value, "test_loss": 2 * (1 - value),
        "val_score": value, "fit_score": (1 + value) / 2, "test_score": value, "generalization_gap": (1 - value) / 2,
    }  # fmt: skip
    if task == "classification":
        metrics["train_accuracy"] = value
    return {name: None if score is None else level for name, level in metrics.items()}


def _metric_lines(
    trial: PlannedTrial, accuracy: float, history: NDArray[np.float32], steps: list[int]
) -> Iterator[str]:
    """metrics.jsonl: what is logged at the end of every epoch, and the network's mean switch weights."""
    for epoch, (step, weights) in enumerate(zip(steps, history, strict=True)):
        value = accuracy + (0.1 - accuracy) * 0.4**epoch
        metrics = {
            f"val_{_MAIN[trial.config.task]}": value, "val_score": value, "val_loss": 2 * (1 - value),
            "train_accuracy": value, "train_loss": 2 * (1 - value), "learning_rate": 0.1,
        }  # fmt: skip
        means = weights.mean(axis=0) if weights.size else np.empty((0, 0))
        switches = {
            f"switch/{statistic}/{normalizer}": float(weight)
            for statistic, row in zip(STATISTICS, means, strict=False)
            for normalizer, weight in zip(trial.pool, row, strict=True)
        }
        for name, level in {**metrics, **switches}.items():
            yield json.dumps({"schema": SCHEMA, "epoch": epoch, "step": step, "name": name, "value": level}) + "\n"


def _history(trial: PlannedTrial, layers: list[Any], truth: Truth, random: np.random.Generator) -> NDArray[np.float32]:
    """Switch weights (epochs, layers, statistics, pool), from even ones to those of the planted logits."""
    epochs, pool = trial.config.epochs + 1, trial.pool
    if not parse_norm(trial.config.norm).is_switch or len(pool) == 1:  # no choice, nothing to record
        return np.empty((epochs, 0, len(STATISTICS), 0), np.float32)
    shape = (len(STATISTICS), len(pool))
    logits = random.normal(0, truth.logit_noise, shape) + random.normal(0, truth.logit_noise, (len(layers), *shape))
    if "bn" in pool:
        logits[..., pool.index("bn")] += truth.bn_logit(trial) * np.array([1, 2]) / 1.5
        of_heads = np.array([layer.role != "backbone" for layer in layers])
        logits[of_heads, :, pool.index("bn")] += truth.bn_logit_of_heads
    if "ln" in pool:
        backbone = sum(layer.role == "backbone" for layer in layers)
        logits[..., pool.index("ln")] += (np.arange(len(layers)) / (backbone - 1))[:, None]
    grown = 1 - 0.5 ** np.arange(epochs)
    weights = np.exp(grown[:, None, None, None] * logits)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


_MAIN = {"classification": "accuracy", "segmentation": "miou", "detection": "box_ap"}
_HEADS = {"classification": (), "segmentation": ("decoder",), "detection": ("fpn", "box_head", "mask_head")}


def _layers(config: TrialConfig) -> list[Any]:
    """The norm layers of a small ResNet and its heads; stand-ins for `LayerGeometry`, which is traced with torch."""
    named = [("bn1", 0, "backbone")]
    for stage in (1, 2, 3):
        for block in range((config.depth - 2) // 6):
            kinds = ("bn1", "bn2", "downsample.1") if stage > 1 and block == 0 else ("bn1", "bn2")
            named += [(f"layer{stage}.{block}.{kind}", stage, "backbone") for kind in kinds]
    heads = [(role, -1, role) for role in _HEADS[config.task]]  # a layer each
    return [
        SimpleNamespace(
            layer=name, layer_index=index, stage=stage, role=role,
            depth_fraction=index / (len(named) - 1) if role == "backbone" else 0.0,
            receptive_field=3 + 2 * index if role == "backbone" else None,
        )
        for index, (name, stage, role) in enumerate([*named, *heads])
    ]  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
