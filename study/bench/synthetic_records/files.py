"""Synthetic records as files on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import yaml

from study.bench.synthetic_records.contents import (
    DIVERGED_REASON,
    FAILED_REASON,
    build_norm_layers,
    compute_curves,
    compute_metrics,
)
from study.bench.synthetic_records.truth import SimulatedRun, Truth, simulate_run
from study.config.schema import StudyConfig
from study.plan.analysis_plan import record_plan, resolve_analysis_plan
from study.plan.trials import PlannedTrial, plan_trials
from study.record.contents import SCHEMA_VERSION
from study.record.io import file_digest, write_yaml
from study.record.layout import StudyFolder, TrialFolder
from study.record.switch_weights import encode_parquet

TrialFilter = Callable[[PlannedTrial], bool]
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the C dumper is ten times faster; some builds lack it


def write_study(
    folder: StudyFolder,
    study: StudyConfig,
    truth: Truth,
    *,
    only: TrialFilter = lambda trial: True,
    diverged: TrialFilter = lambda trial: False,
    failed: TrialFilter = lambda trial: False,
) -> None:
    """Writes a study with its records.

    only: the trials that have a result. failed: trials that failed and have none. diverged: trials whose runs diverged.
    Both are in addition to those that fail or diverge by the truth.
    """
    provenance: dict[str, Any] = {
        "command": f"python run_study.py --study {study.name}", "commit": "abc123", "versions": {"torch": "2.11.0"},
        "platform": "Linux", "python": "3.11", "created": "2026-01-01T00:00:00",
    }  # fmt: skip
    plan = record_plan(resolve_analysis_plan(study), provenance["created"], results=0)
    write_yaml(folder.config, {"study": study.model_dump(mode="json"), **plan.to_dict(), "provenance": provenance})
    for trial in plan_trials(study):
        run = simulate_run(trial, build_norm_layers(trial.config), truth)
        if failed(trial) or (only(trial) and run.failed):
            record = folder.trial(trial.trial_id, trial.replicate)
            record.path.mkdir(parents=True)
            record.state.write_text(_to_json({
                "state": "failed", "reason": FAILED_REASON, "failures": 3, "attempt": 3,
            }))  # fmt: skip
        elif only(trial):
            _write_run(folder, trial, run, diverged(trial) or run.diverged)


def write_trial(folder: StudyFolder, trial: PlannedTrial, truth: Truth) -> TrialFolder:
    """Writes the record of one finished trial, its result last. Neither atomic nor synced: nobody reads it yet."""
    run = simulate_run(trial, build_norm_layers(trial.config), truth)
    return _write_run(folder, trial, run, run.diverged)


def _write_run(folder: StudyFolder, trial: PlannedTrial, run: SimulatedRun, diverged: bool) -> TrialFolder:
    record = folder.trial(trial.trial_id, trial.replicate)
    record.path.mkdir(parents=True)
    layers = build_norm_layers(trial.config)
    steps = [trial.steps_per_epoch * epoch for epoch in range(len(run.history))]
    description = _describe(trial, folder.path.name, len(layers))
    record.state.write_text(_to_json({"state": "running", "failures": 0, "attempt": 1, "pid": 1, "host": "somewhere"}))
    record.trial.write_text(yaml.dump(description, Dumper=_YAML_DUMPER, sort_keys=False))
    record.environment.write_text(_to_json({"device": "cpu", "commit": "abc123", "host": "somewhere", "threads": 1}))
    record.metrics.write_text("".join(_format_metric_lines(trial, run, steps)))
    record.switch_weights.write_bytes(
        encode_parquet(run.history, steps, layers, trial.pool, trial.space, trial.trial_id, trial.replicate)
    )
    _write_result(record, description, None if diverged else run.accuracy)
    return record


def _describe(trial: PlannedTrial, study: str, norm_layers: int) -> dict[str, Any]:
    """The content of trial.yaml."""
    settings = [f"--set 'factors.{factor}={json.dumps([level])}'" for factor, level in trial.levels.items()]
    command = f"python run_study.py --study {study} --set replicates={trial.replicate + 1} {' '.join(settings)}"
    return {
        "trial_id": trial.trial_id, "replicate": trial.replicate, "study": study, "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"), "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch, "device_batch": trial.device_batch, "pool": list(trial.pool),
        "parameters": 1000, "norm_layers": norm_layers, "seeds": trial.seeds, "command": command,
    }  # fmt: skip


def _format_metric_lines(trial: PlannedTrial, run: SimulatedRun, steps: Sequence[int]) -> Iterator[str]:
    """The lines of metrics.jsonl: the curves, and the network's mean switch weights."""
    curves = compute_curves(trial, run)
    for epoch, (step, weights) in enumerate(zip(steps, run.history, strict=True)):
        means = weights.mean(axis=0) if weights.size else np.empty((0, 0))
        switches = {
            f"switch/{axis}/{member}": float(weight)
            for axis, row in zip(trial.space.axis_names, means, strict=False)
            for member, weight in zip(trial.pool, row, strict=True)
        }
        for name, value in {**{name: float(values[epoch]) for name, values in curves.items()}, **switches}.items():
            yield (
                json.dumps({"schema": SCHEMA_VERSION, "epoch": epoch, "step": step, "name": name, "value": value})
                + "\n"
            )


def _write_result(record: TrialFolder, description: dict[str, Any], accuracy: float | None) -> None:
    """Writes result.json with the digests of the other files. A run without an accuracy has diverged."""
    files = (record.trial, record.environment, record.metrics, record.switch_weights)
    repeated = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "pool", "parameters", "norm_layers")
    record.result.write_text(_to_json({
        "schema": SCHEMA_VERSION, **{name: description[name] for name in repeated},
        "status": "diverged" if accuracy is None else "done", "reason": DIVERGED_REASON if accuracy is None else None,
        "epochs": description["config"]["epochs"], "seconds": 1.5, "attempts": 1,
        "metrics": compute_metrics(description["config"]["task"], accuracy),
        "notes": [], "files": {file.name: file_digest(file) for file in files},
    }))  # fmt: skip


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
