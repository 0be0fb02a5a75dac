"""Reads the files of one trial: a row of the trial table, learning curves and switch weights.

What cannot be read makes the trial `damaged`, with the file and the reason; nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic_core import to_jsonable_python

from study.analysis.weight_tables import read_switch_weights
from study.config.choice_space import ChoiceSpace
from study.config.errors import escape_controls
from study.config.schema import StudyConfig
from study.norms.names import parse_norm
from study.plan.margins import MAIN_METRICS
from study.plan.trials import PlannedTrial, plan_trial
from study.record.contents import FINISHED, MAX_TABLE_BYTES, DamagedFileError, read_command, read_metrics
from study.record.io import read_file
from study.record.layout import TrialFolder, read_reason

SPLITS = ("val", "test", "fit")  # `fit` is the training split, evaluated as the other two are
METRICS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("fit_accuracy", "fit_loss", "generalization_gap"),
    *(f"{split}_{name}" for name in ("score", "miou", "pixel_accuracy", "box_ap", "mask_ap") for split in SPLITS),
)
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_score", "learning_rate")
# Fields of the config that are columns of the trial table even where the study does not vary them.
CONFIG_COLUMNS = ("norm", "depth", "batch_size", "task", "dataset")
ROUNDING = 1e-9
RESULT_NUMBERS = ("parameters", "norm_layers", "seconds")
FACTS = ("start", "statistics_batch", "gradient_batch", "pool", "command", "device", "commit", "wandb")


@dataclass(kw_only=True)
class TrialRecord:
    """What the files of a trial hold.

    row: of the trial table. curves: (key, epoch, name, value). weights: switch weights of every epoch; None where the
    trial has none, or none that can be read. data: fingerprint by data set; empty in records of older versions.
    """

    row: dict[str, Any]
    curves: list[tuple[str, int, str, float]]
    weights: pa.Table | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def mark_damaged(self, reason: str) -> None:
        """Has the trial count as `damaged`, without results."""
        self.row |= {"state": "damaged", "reason": reason, **dict.fromkeys((*METRICS, *RESULT_NUMBERS))}
        self.curves, self.weights = [], None


def read_trial(folder: TrialFolder, plan: PlannedTrial | None, space: ChoiceSpace) -> TrialRecord:
    """Reads a trial of any state. plan: None for a trial of a search whose trial.yaml cannot be read."""
    row = {**_read_planned_facts(folder, plan), **_read_state_and_results(folder, plan)}
    record = TrialRecord(row=row, curves=[])
    try:
        environment = folder.read_environment()
        record.data = environment.get("data", {})
        row |= _read_facts(folder, environment)
        record.curves = _read_curves(folder)
        if row["state"] != "damaged":
            record.weights = _read_weights(folder, space, is_running=row["state"] == "running")
        if row["state"] in FINISHED and plan is not None:
            _check_config(folder, plan)
        if row["state"] == "done" and plan is not None:
            _check_epochs(folder, plan, record)
            _check_scores(folder, row, record.curves)
    except DamagedFileError as error:
        record.mark_damaged(str(error))
    # The files may be those of another person, and must not control a terminal that shows a table.
    row |= {name: escape_controls(row[name]) for name in ("reason", *FACTS) if isinstance(row.get(name), str)}
    return record


def find_damage(folder: TrialFolder, plan: PlannedTrial, space: ChoiceSpace) -> str:
    """Why the record of a trial cannot be used; empty if it can."""
    row = read_trial(folder, plan, space).row
    return row["reason"] if row["state"] == "damaged" else ""


def read_search_plan(study: StudyConfig, folder: TrialFolder) -> PlannedTrial | None:
    """The plan that trial.yaml of a trial of a search holds; None where it cannot be read."""
    try:
        data = folder.read_description()
        # YAML has no tuples, which list-valued levels are.
        levels = {name: tuple(level) if isinstance(level, list) else level for name, level in data["levels"].items()}
        return plan_trial(study, levels, data["replicate"])
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
    result, damaged = folder.check()
    reasons = [folder.describe_damage(name) for name in damaged]
    reasons += [] if plan else [_explain_no_plan(folder)]
    if reasons:
        return {"state": "damaged", "reason": "; ".join(reasons)}
    if result is not None:
        return {"state": result["status"], "reason": read_reason(result), **_select_results(result)}
    state, reason = folder.status()
    return {"state": state, "reason": reason}


def _explain_no_plan(folder: TrialFolder) -> str:
    """Why trial.yaml of a trial of a search gives no plan."""
    try:
        folder.read_description()
    except DamagedFileError as error:
        return str(error)
    return f"{folder.trial.name}: not a trial of this study"


def _read_facts(folder: TrialFolder, environment: Mapping[str, Any]) -> dict[str, Any]:
    """How and where the trial was run."""
    url = (environment.get("wandb") or {}).get("url")  # offline runs have none
    found = {name: environment.get(name) for name in ("device", "commit")}
    return {"command": read_command(folder.trial), **found, "wandb": url}


def _read_weights(folder: TrialFolder, space: ChoiceSpace, *, is_running: bool) -> pa.Table | None:
    """The switch weights of every epoch; None where there are none. Raises `DamagedFileError`."""
    file = folder.switch_weights
    try:
        weights = read_switch_weights(pa.BufferReader(read_file(file, MAX_TABLE_BYTES)), space)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if is_running:  # it may be writing the file
            return None
        raise DamagedFileError(file.name, str(error)) from None
    return weights if weights.num_rows else None  # the layers of some norms have no choice


def _check_config(folder: TrialFolder, plan: PlannedTrial) -> None:
    """Raises `DamagedFileError` where trial.yaml holds another config or other levels than the plan.

    Paths may differ, because a folder may have been moved, and an older version may have had other fields.
    """
    description = folder.read_description()
    planned = plan.config.model_dump(mode="json", exclude={"start_source"})
    parts = (("config", planned), ("levels", to_jsonable_python(plan.levels)))
    for part, expected in parts:
        found = description[part]
        if wrong := [name for name, value in expected.items() if name in found and found[name] != value]:
            raise DamagedFileError(folder.trial.name, f"{part}: {', '.join(wrong)}: not what the trial's id stands for")


def _check_epochs(folder: TrialFolder, plan: PlannedTrial, record: TrialRecord) -> None:
    """Raises `DamagedFileError` where the files of a finished trial do not end with the last planned epoch."""
    trained = (folder.read_result() or {}).get("epochs")
    if trained and trained != plan.config.epochs:  # an imported network was not trained here: 0
        raise DamagedFileError(folder.result.name, f"epochs is {trained}, but {plan.config.epochs} are planned")
    last = None if record.weights is None else record.weights["epoch"].to_numpy().max()
    if last is None and parse_norm(plan.config.norm).is_switch:
        raise DamagedFileError(folder.switch_weights.name, "holds no switch weights")
    if None not in (last, trained) and last != trained:
        raise DamagedFileError(folder.switch_weights.name, f"the last epoch is {last}, not {trained}")
    last = max((epoch for _, epoch, _, _ in record.curves), default=0)
    if trained is not None and last > trained:
        raise DamagedFileError(folder.metrics.name, f"the last epoch is {last}, not {trained}")


def _check_scores(folder: TrialFolder, row: dict[str, Any], curves: list[tuple[str, int, str, float]]) -> None:
    """Raises `DamagedFileError` where a result differs from the last epoch's value, or from what other results say."""
    last = max((epoch for _, epoch, _, _ in curves), default=0)
    for _, epoch, name, value in curves:
        if epoch == last and name in METRICS and not _is_same(row[name], value):
            raise DamagedFileError(folder.result.name, f"{name} is {row[name]}, but {value} in {folder.metrics.name}")
    for split in SPLITS:
        score, metric = f"{split}_score", f"{split}_{MAIN_METRICS[row['task']]}"
        if abs(row[score] - row[metric]) > 0:  # not NaN
            raise DamagedFileError(folder.result.name, f"{score} is {row[score]}, but {metric} is {row[metric]}")
    gap, expected = row["generalization_gap"], row["fit_score"] - row["val_score"]
    if abs(gap - expected) > ROUNDING:
        raise DamagedFileError(folder.result.name, f"generalization_gap is {gap}, but {expected} by its scores")


def _is_same(result: float, value: float) -> bool:
    return result == value or (isnan(result) and isnan(value))


def _select_results(result: dict[str, Any]) -> dict[str, float]:
    metrics = {name: _convert_number(result["metrics"].get(name)) for name in METRICS}
    return metrics | {name: _convert_number(result.get(name)) for name in RESULT_NUMBERS}


def _read_curves(folder: TrialFolder) -> list[tuple[str, int, str, float]]:
    key = build_key(folder)
    return [
        (key, row["epoch"], row["name"], _convert_number(row["value"]))
        for row in read_metrics(folder.metrics)
        if row["name"] in CURVES
    ]


def _convert_number(value: float | None) -> float:
    """The number as a float; NaN for None."""
    return float("nan") if value is None else float(value)
