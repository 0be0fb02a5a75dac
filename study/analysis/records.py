"""Reads what a study left on disk into data frames. Nothing is dropped: what cannot be read is counted and named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.analysis.statistics import STATISTICS
from study.config import StudyConfig, UserError, parse_yaml, read_yaml, study_from_dict
from study.norms.names import NORMALIZERS, parse_norm
from study.plan import PlannedTrial, plan_trial, plan_trials
from study.record.files import StudyFolder, TrialFolder, read_json, read_metrics

METRICS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("fit_accuracy", "fit_loss", "generalization_gap"),
)
SWITCH_COLUMNS = (
    *("trial_id", "replicate", "epoch", "step", "layer", "layer_index", "depth_fraction", "stage", "role"),
    *("receptive_field", "statistic", "normalizer", "weight"),
)
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
ALWAYS = ("norm", "depth", "batch_size")  # columns even where the study does not vary them


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """All that is known of a study.

    trials: one row a planned trial (a search: a trial found on disk). Columns: key, trial_id, replicate, one a factor,
        norm, depth, batch_size, state, reason, the metrics (NaN where null), parameters, norm_layers, statistics_batch,
        gradient_batch, seconds, pool, command, device, commit.
    switch: switch weights of each trial's last epoch; key and the columns of `switch_weights.parquet`.
    switch_epochs: means over layers; key, epoch, scope ("network" or "stage 1"), statistic, normalizer, weight.
    curves: key, epoch, name, value.
    unplanned: keys of trials on disk that the plan does not name.
    """

    folder: StudyFolder
    study: StudyConfig
    provenance: dict[str, Any]
    trials: pd.DataFrame
    switch: pd.DataFrame
    switch_epochs: pd.DataFrame
    curves: pd.DataFrame
    unplanned: tuple[str, ...]

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `trials` that finished with a result to compare."""
        return self.trials[self.trials["state"] == "done"]

    @property
    def n_planned(self) -> int:
        return self.study.search.n_trials if self.study.search else len(self.trials)

    @property
    def is_finished(self) -> bool:
        """Every planned trial has a result; a diverged run is one."""
        finished = self.trials["state"].isin(["done", "diverged", "pruned"])
        return len(self.trials) >= self.n_planned and bool(finished.all())

    def levels(self, factor: str) -> list[Any]:
        """The levels of a factor in the study's order; the base's level where the study does not vary it."""
        listed = self.study.factors.get(factor, [getattr(self.study.base, factor)])
        return listed if isinstance(listed, list) else sorted(self.trials[factor].dropna().unique())

    @property
    def reference_norm(self) -> str | None:
        """The norm whose choices are studied: `sn`, or the first switch norm without a control; None if there is none."""
        switches = [norm for norm in self.levels("norm") if parse_norm(norm).is_switch]
        free = [norm for norm in switches if parse_norm(norm).control is None]
        return "sn" if "sn" in free else next(iter(free), None)


def load_study_records(folder: StudyFolder) -> StudyRecords:
    """Reads a study of any completeness: no trials, one, some, all.

    Raises `UserError` where `study.yaml` is missing or no study. A damaged trial is a row of state `damaged`.
    """
    study, provenance = _read_study(folder)
    on_disk = list(folder.trials())
    if study.search is None:
        planned = [(folder.trial(plan.trial_id, plan.replicate), plan) for plan in plan_trials(study)]
    else:
        planned = [(trial, _found_trial(study, trial)) for trial in on_disk]
    known = {trial.path for trial, _ in planned}
    records = [_read_trial(trial, plan, list(study.factors)) for trial, plan in planned]
    return StudyRecords(
        folder=folder, study=study, provenance=provenance,
        trials=_trial_table([row for row, *_ in records], list(study.factors)),
        switch=_concat([switch for _, switch, _, _ in records], ["key", *SWITCH_COLUMNS]),
        switch_epochs=_concat(
            [epochs for _, _, epochs, _ in records], ["key", "epoch", "scope", "statistic", "normalizer", "weight"]
        ),
        curves=_concat([curves for *_, curves in records], ["key", "epoch", "name", "value"]),
        unplanned=tuple(f"{trial.trial_id}-{trial.path.name}" for trial in on_disk if trial.path not in known),
    )  # fmt: skip


def read_switch_weights(file: Any) -> pd.DataFrame:
    """The switch weights of one trial, every epoch. Raises `ValueError` for a file that is not what it should be."""
    try:
        rows: pd.DataFrame = pq.read_table(file, columns=list(SWITCH_COLUMNS)).to_pandas()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: {str(error).splitlines()[0]}") from None
    if list(rows.columns) != list(SWITCH_COLUMNS):
        raise ValueError(f"lacks {', '.join(sorted(set(SWITCH_COLUMNS) - set(rows.columns)))}")
    if not (rows["statistic"].isin(STATISTICS).all() and rows["normalizer"].isin(NORMALIZERS).all()):
        raise ValueError("holds an unknown statistic or normalizer")
    sums = rows.groupby(["epoch", "layer_index", "statistic"])["weight"].sum()
    if not np.allclose(sums, 1, atol=1e-3):
        raise ValueError("weights do not sum to 1 over the normalizers")
    return rows


def _read_study(folder: StudyFolder) -> tuple[StudyConfig, dict[str, Any]]:
    try:
        data = read_yaml(folder.config)
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder.config}: no study here") from None
    if not isinstance(data.get("study"), dict):
        raise UserError(f"{folder.config}: study: expected keys and values")
    provenance = data.get("provenance")
    return study_from_dict(data["study"], str(folder.config)), provenance if isinstance(
        provenance, dict
    ) else {}


def _found_trial(study: StudyConfig, folder: TrialFolder) -> PlannedTrial | None:
    """What a trial of a search says of itself; None where that cannot be read."""
    try:
        data = parse_yaml(folder.trial.read_text(encoding="utf-8"), str(folder.trial))
        return plan_trial(study, data["levels"], int(data["replicate"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


_Record = tuple[dict[str, Any], pd.DataFrame | None, pd.DataFrame | None, pd.DataFrame | None]


def _read_trial(folder: TrialFolder, plan: PlannedTrial | None, factors: Sequence[str]) -> _Record:
    """A row of the trial table, the last epoch's switch weights, their means by epoch, and the curves."""
    row = _planned_row(folder, plan)
    row["state"], row["reason"] = _state(folder, plan)
    row |= _facts_on_disk(folder, finished=row["state"] in ("done", "diverged", "pruned"))
    curves = pd.DataFrame(
        [(row["key"], metric["epoch"], metric["name"], _number(metric.get("value")))
         for metric in read_metrics(folder.metrics) if metric["name"] in CURVES],
        columns=["key", "epoch", "name", "value"],
    )  # fmt: skip
    if row["state"] == "damaged" or not folder.switch_weights.is_file():
        return row, None, None, curves
    try:
        switch = read_switch_weights(folder.switch_weights)
    except ValueError as error:
        if row["state"] != "running":  # a running trial may be writing it
            row["state"], row["reason"] = "damaged", f"{folder.switch_weights.name}: {error}"
        return row, None, None, curves
    switch.insert(0, "key", row["key"])
    return row, switch[switch["epoch"] == switch["epoch"].max()], _means_by_epoch(switch), curves


def _planned_row(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, Any]:
    if plan is None:
        return {"key": f"{folder.trial_id}-{folder.path.name}", "trial_id": folder.trial_id}
    return {
        "key": plan.key, "trial_id": plan.trial_id, "replicate": plan.replicate,
        **{name: getattr(plan.config, name) for name in ALWAYS}, **plan.levels,
        "statistics_batch": plan.statistics_batch, "gradient_batch": plan.gradient_batch, "pool": ",".join(plan.pool),
    }  # fmt: skip


def _state(folder: TrialFolder, plan: PlannedTrial | None) -> tuple[str, str]:
    try:
        damaged = folder.damaged_files()
        if plan is None:
            damaged.append(folder.trial.name)
        return ("damaged", ", ".join(damaged)) if damaged else folder.status()
    except (KeyError, TypeError, AttributeError):  # JSON of the wrong shape
        return "damaged", f"{folder.result.name} or {folder.state.name}"


def _facts_on_disk(folder: TrialFolder, *, finished: bool) -> dict[str, Any]:
    """What the files add to the plan's row. Metrics are those of a finished trial only."""
    facts: dict[str, Any] = {}
    result = read_json(folder.result) if finished else None
    if result is not None:
        metrics = result.get("metrics") or {}
        facts |= {name: _number(metrics.get(name)) for name in METRICS}
        facts |= {name: _number(result.get(name)) for name in ("parameters", "norm_layers", "seconds")}
    environment = read_json(folder.environment) or {}
    facts |= {name: environment.get(name) for name in ("device", "commit")}
    try:
        facts["command"] = parse_yaml(folder.trial.read_text(encoding="utf-8"), "")["command"]
    except (OSError, ValueError, KeyError, TypeError):
        facts["command"] = None
    return facts


def _number(value: object) -> float:
    """A finite number, or NaN."""
    usable = isinstance(value, (int, float)) and np.isfinite(value)
    return float(value) if usable else float("nan")  # type: ignore[arg-type]


def _means_by_epoch(switch: pd.DataFrame) -> pd.DataFrame:
    """Means over layers (every layer counts the same), of the network and of each stage."""
    by = ["key", "epoch", "scope", "statistic", "normalizer"]
    scopes = (switch.assign(scope="network"), switch.assign(scope="stage " + switch["stage"].astype(str)))
    return pd.concat([frame.groupby(by, as_index=False)["weight"].mean() for frame in scopes])


def _trial_table(rows: list[dict[str, Any]], factors: Sequence[str]) -> pd.DataFrame:
    names = ("key", "trial_id", "replicate", *factors, *ALWAYS, "state", "reason", *METRICS, "parameters",
             "norm_layers", "statistics_batch", "gradient_batch", "seconds", "pool", "command", "device", "commit")  # fmt: skip
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(names)))
    numbers = [*METRICS, "parameters", "norm_layers", "seconds"]
    table[numbers] = table[numbers].astype(float)
    # Levels keep their own type: None, true and 1 are different levels.
    return table.assign(
        **{name: pd.Series([row.get(name) for row in rows], dtype=object) for name in factors}
    )


def _concat(frames: Iterable[pd.DataFrame | None], columns: list[str]) -> pd.DataFrame:
    filled = [frame for frame in frames if frame is not None and len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
