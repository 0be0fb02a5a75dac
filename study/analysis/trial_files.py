"""Reads the files of one trial: a row of the trial table, learning curves and switch weights.

What cannot be read makes the trial `damaged`, with the file and the reason; nothing is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from study.analysis.weight_tables import read_switch_weights
from study.config.choice_space import ChoiceSpace
from study.config.schema import StudyConfig
from study.plan.trials import PlannedTrial, plan_trial
from study.record.io import read_json, read_metrics
from study.record.layout import SCHEMA_VERSION, TrialFolder

SPLITS = ("val", "test", "fit")  # `fit` is the training split, evaluated as the other two are
METRICS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("fit_accuracy", "fit_loss", "generalization_gap"),
    *(f"{split}_{name}" for name in ("score", "miou", "pixel_accuracy", "box_ap", "mask_ap") for split in SPLITS),
)
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_score", "learning_rate")
# Fields of the config that are columns of the trial table even where the study does not vary them.
CONFIG_COLUMNS = ("norm", "depth", "batch_size", "task", "dataset")
RESULT_NUMBERS = ("parameters", "norm_layers", "seconds")
FACTS = ("start", "statistics_batch", "gradient_batch", "pool", "command", "device", "commit", "wandb")

# PyYAML's C loader, where it is installed, is ten times faster; with a thousand trials that matters.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(kw_only=True)
class TrialRecord:
    """What the files of a trial hold.

    row: of the trial table. curves: (key, epoch, name, value). weights: switch weights of every epoch; None where the
    trial has none, or none that can be read.
    """

    row: dict[str, Any]
    curves: list[tuple[str, int, str, float]]
    weights: pa.Table | None = None


def read_trial(folder: TrialFolder, plan: PlannedTrial | None, space: ChoiceSpace) -> TrialRecord:
    """Reads a trial of any state. plan: None for a trial of a search whose trial.yaml cannot be read."""
    row = {**_read_planned_facts(folder, plan), **_read_state_and_results(folder, plan), **_read_facts(folder)}
    record = TrialRecord(row=row, curves=_read_curves(folder))
    if row["state"] == "damaged" or not folder.switch_weights.is_file():
        return record
    try:
        weights = read_switch_weights(folder.switch_weights, space)
    except ValueError as error:
        if row["state"] != "running":  # a running trial may be writing it
            row |= {"state": "damaged", "reason": f"{folder.switch_weights.name}: {error}"}
        return record
    if weights.num_rows:  # the layers of some norms have no choice
        record.weights = weights
    return record


def read_search_plan(study: StudyConfig, folder: TrialFolder) -> PlannedTrial | None:
    """The plan that trial.yaml of a trial of a search holds; None where it cannot be read."""
    data = _read_trial_yaml(folder)
    try:
        # YAML has no tuples, which list-valued levels are.
        levels = {name: tuple(level) if isinstance(level, list) else level for name, level in data["levels"].items()}
        return plan_trial(study, levels, int(data["replicate"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def build_trial_table(records: Sequence[TrialRecord], factors: Sequence[str]) -> pd.DataFrame:
    """The trial table: one row per trial; see `StudyRecords` for its columns."""
    names = (
        "key", "trial_id", "replicate", *factors, *CONFIG_COLUMNS, "state", "reason", *METRICS, *RESULT_NUMBERS, *FACTS,
    )  # fmt: skip
    numbers = {*METRICS, *RESULT_NUMBERS}
    # dtype object keeps the type of levels (None, True and 1 are different levels), and None for unknown values.
    columns = {
        name: pd.Series([record.row.get(name) for record in records], dtype=float if name in numbers else object)
        for name in names
    }
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def build_key(folder: TrialFolder) -> str:
    """The key of a trial, unique in a study: `<trial id>-r<replicate>`."""
    return f"{folder.trial_id}-{folder.path.name}"


def _read_trial_yaml(folder: TrialFolder) -> dict[str, Any]:
    """The content of trial.yaml; empty where it cannot be read."""
    try:
        data = yaml.load(folder.trial.read_text(encoding="utf-8"), Loader=_YAML_LOADER)  # noqa: S506  (both are safe)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_planned_facts(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, Any]:
    if plan is None:
        return {"key": build_key(folder), "trial_id": folder.trial_id}
    return {
        "key": plan.key,
        "trial_id": plan.trial_id,
        "replicate": plan.replicate,
        **{name: getattr(plan.config, name) for name in CONFIG_COLUMNS},
        **plan.levels,
        "start": plan.source and plan.source.describe(plan.replicate),
        "statistics_batch": plan.statistics_batch,
        "gradient_batch": plan.gradient_batch,
        "pool": ",".join(plan.pool),
    }


def _read_state_and_results(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, Any]:
    try:
        result, damaged = folder.check()
        damaged += [] if plan else [folder.trial.name]
        if damaged:
            return {"state": "damaged", "reason": "; ".join(_format_damage(folder, name) for name in damaged)}
        if result is not None:
            return {"state": result["status"], "reason": result.get("reason") or "", **_select_results(result)}
        state, reason = folder.status()
    except (KeyError, TypeError, AttributeError):  # valid JSON, but not of the expected shape
        state, reason = "damaged", f"{folder.result.name} or {folder.state.name}"
    return {"state": state, "reason": reason}


def _format_damage(folder: TrialFolder, name: str) -> str:
    """What is wrong with a file of a trial that has ended."""
    path = folder.path / name
    if not path.exists():
        return f"{name}: missing"
    if name == folder.result.name:
        result = read_json(path)
        if result is None:
            return f"{name}: half-written"
        if result.get("schema") != SCHEMA_VERSION:
            return f"{name}: has schema {result.get('schema')}, but this version reads schema {SCHEMA_VERSION}"
        return f"{name}: lacks required keys"
    return f"{name}: changed since the trial ended"


def _read_facts(folder: TrialFolder) -> dict[str, Any]:
    """How and where the trial was run."""
    environment = read_json(folder.environment) or {}
    wandb = environment.get("wandb")
    url = wandb.get("url") if isinstance(wandb, dict) else None  # offline runs have none
    found = {name: environment.get(name) for name in ("device", "commit")}
    return {"command": _read_command(folder), **found, "wandb": url}


def _read_command(folder: TrialFolder) -> object:
    """The command in trial.yaml. Only its own lines are parsed: the whole file would take most of a report's time."""
    try:
        lines = re.search(r"^command:.*(\n[ \t].*)*", folder.trial.read_text(encoding="utf-8"), re.MULTILINE)
        return yaml.load(lines[0], Loader=_YAML_LOADER)["command"] if lines else None  # noqa: S506  (both are safe)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _select_results(result: dict[str, Any]) -> dict[str, float]:
    metrics = {name: _convert_number(result["metrics"].get(name)) for name in METRICS}
    return metrics | {name: _convert_number(result.get(name)) for name in RESULT_NUMBERS}


def _read_curves(folder: TrialFolder) -> list[tuple[str, int, str, float]]:
    key = build_key(folder)
    return [
        (key, row["epoch"], row["name"], _convert_number(row.get("value")))
        for row in read_metrics(folder.metrics)
        if row["name"] in CURVES
    ]


def _convert_number(value: object) -> float:
    """A finite number as a float; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else float("nan")
