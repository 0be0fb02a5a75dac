"""Reads what a study left on disk. What cannot be read is counted and named, never dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from study.analysis.statistics import STATISTICS
from study.config import StudyConfig, study_from_dict
from study.norms.names import NORMALIZERS, parse_norm
from study.plan import PlannedTrial, plan_trial, plan_trials
from study.reading import UserError, read_yaml
from study.record.files import FINISHED, StudyFolder, TrialFolder, read_json, read_metrics

METRICS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("fit_accuracy", "fit_loss", "generalization_gap"),
)
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
SWITCH_COLUMNS = (
    *("trial_id", "replicate", "epoch", "step", "layer", "layer_index", "depth_fraction", "stage", "role"),
    *("receptive_field", "statistic", "normalizer", "weight"),
)
ALWAYS = ("norm", "depth", "batch_size")  # columns of the trial table even where the study does not vary them
NUMBERS = ("parameters", "norm_layers", "seconds")
FACTS = ("statistics_batch", "gradient_batch", "pool", "command", "device", "commit")


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """All that is known of a study.

    trials: a row a planned trial (of a search: a trial found on disk). Columns: key, trial_id, replicate, one
        a factor, norm, depth, batch_size, state, reason, `METRICS` (NaN where null), `NUMBERS` and `FACTS`.
    switch: switch weights of each trial's last epoch: key and the columns of `switch_weights.parquet`.
    switch_epochs: means over layers: key, epoch, scope ("network", "stage 1"), statistic, normalizer, weight.
    curves: metrics by epoch: key, epoch, name, value.
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
        """The rows of `trials` with a result to compare."""
        done: pd.DataFrame = self.trials[self.trials["state"].eq("done")]
        return done

    @property
    def n_planned(self) -> int:
        search = self.study.search
        return search.n_trials * self.study.replicates if search else len(self.trials)

    @property
    def n_finished(self) -> int:
        """Trials with a result; a diverged run is one."""
        return int(self.trials["state"].isin(FINISHED).sum())

    @property
    def reference_norm(self) -> str | None:
        """The norm whose choices are studied: `sn`, else the first switch norm without a control, if any."""
        specs = {norm: parse_norm(norm) for norm in self.levels("norm")}
        free = [norm for norm, spec in specs.items() if spec.is_switch and spec.control is None]
        return "sn" if "sn" in free else next(iter(free), None)

    def levels(self, factor: str) -> list[Any]:
        """The levels of a factor in the study's order; the base's level where the study does not vary it."""
        listed = self.study.factors.get(factor, [getattr(self.study.base, factor)])
        return listed if isinstance(listed, list) else sorted(self.trials[factor].dropna().unique())


def load_study_records(folder: StudyFolder) -> StudyRecords:
    """Reads a study of any completeness: no trials, one, some, all.

    Raises `UserError` where `study.yaml` is missing or no study. A damaged trial is a row of state `damaged`.
    """
    study, provenance = _read_study(folder)
    on_disk = list(folder.trials())
    planned: list[tuple[TrialFolder, PlannedTrial | None]] = (
        [(trial, _read_plan(study, trial)) for trial in on_disk]
        if study.search
        else [(folder.trial(plan.trial_id, plan.replicate), plan) for plan in plan_trials(study)]
    )
    records = [_read_trial(trial, plan) for trial, plan in planned]
    known = {trial.path for trial, _ in planned}
    return StudyRecords(
        folder=folder, study=study, provenance=provenance,
        trials=_trial_table([record.row for record in records], list(study.factors)),
        switch=_concat((record.switch for record in records), _EMPTY_SWITCH),
        switch_epochs=_concat((record.switch_epochs for record in records), _EMPTY_EPOCHS),
        curves=_concat((record.curves for record in records), _EMPTY_CURVES),
        unplanned=tuple(_key(trial) for trial in on_disk if trial.path not in known),
    )  # fmt: skip


def read_switch_weights(file: Any) -> pa.Table:
    """The switch weights of one trial: `SWITCH_COLUMNS`, every epoch. Raises `ValueError` if damaged."""
    try:
        table = pq.read_table(file)
        if lacking := set(SWITCH_COLUMNS) - set(table.column_names):
            raise ValueError(f"lacks the columns {', '.join(sorted(lacking))}")
        sums = table.group_by(["epoch", "layer_index", "statistic"]).aggregate([("weight", "sum")])["weight_sum"]
        names = {*table["statistic"].unique().to_pylist()}, {*table["normalizer"].unique().to_pylist()}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: {str(error).splitlines()[0]}") from None
    if not (names[0] <= {*STATISTICS} and names[1] <= {*NORMALIZERS}):
        raise ValueError("holds an unknown statistic or normalizer")
    if not np.allclose(sums.to_numpy(), 1, atol=1e-3):
        raise ValueError("holds weights that do not sum to 1 over the normalizers")
    return table.select(list(SWITCH_COLUMNS))


# The C loader is ten times faster where PyYAML has it; a study of a thousand trials feels that.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_EMPTY_SWITCH = pd.DataFrame(columns=["key", *SWITCH_COLUMNS])
_EMPTY_EPOCHS = pd.DataFrame(columns=["key", "epoch", "scope", "statistic", "normalizer", "weight"])
_EMPTY_CURVES = pd.DataFrame(columns=["key", "epoch", "name", "value"])


@dataclass(kw_only=True)
class _TrialRecord:
    """A row of the trial table and what belongs to it."""

    row: dict[str, Any]
    curves: pd.DataFrame
    switch: pd.DataFrame | None = None
    switch_epochs: pd.DataFrame | None = None


def _read_study(folder: StudyFolder) -> tuple[StudyConfig, dict[str, Any]]:
    if not folder.config.exists():
        raise UserError(f"{folder.config}: no study here")
    data = read_yaml(folder.config)
    if not isinstance(data.get("study"), dict):
        raise UserError(f"{folder.config}: study: expected keys and values")
    return study_from_dict(data["study"], str(folder.config)), dict(data.get("provenance") or {})


def _read_plan(study: StudyConfig, folder: TrialFolder) -> PlannedTrial | None:
    """What a trial of a search says of itself; None where that cannot be read."""
    data = _read_yaml_or_nothing(folder)
    try:
        return plan_trial(study, data["levels"], int(data["replicate"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read_yaml_or_nothing(folder: TrialFolder) -> dict[str, Any]:
    try:
        data = yaml.load(folder.trial.read_text(encoding="utf-8"), Loader=_YAML_LOADER)  # noqa: S506  (both are safe)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_trial(folder: TrialFolder, plan: PlannedTrial | None) -> _TrialRecord:
    row = {**_planned_facts(folder, plan), **_state(folder, plan), **_facts_on_disk(folder)}
    if row["state"] in FINISHED:
        row |= _results(read_json(folder.result) or {})
    record = _TrialRecord(row=row, curves=_read_curves(folder))
    if row["state"] == "damaged" or not folder.switch_weights.is_file():
        return record
    try:
        weights = read_switch_weights(folder.switch_weights)
    except ValueError as error:
        if row["state"] != "running":  # a running trial may be writing it
            row |= {"state": "damaged", "reason": f"{folder.switch_weights.name}: {error}"}
        return record
    if not weights.num_rows:  # a norm without a choice
        return record
    last = weights.filter(pc.equal(weights["epoch"], pc.max(weights["epoch"]))).to_pandas()
    record.switch = last.assign(key=row["key"])
    record.switch_epochs = _means_by_epoch(weights).assign(key=row["key"])
    return record


def _planned_facts(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, Any]:
    if plan is None:
        return {"key": _key(folder), "trial_id": folder.trial_id}
    return {
        "key": plan.key,
        "trial_id": plan.trial_id,
        "replicate": plan.replicate,
        **{name: getattr(plan.config, name) for name in ALWAYS},
        **plan.levels,
        "statistics_batch": plan.statistics_batch,
        "gradient_batch": plan.gradient_batch,
        "pool": ",".join(plan.pool),
    }


def _state(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, str]:
    try:
        damaged = folder.damaged_files() + ([] if plan else [folder.trial.name])
        state, reason = ("damaged", ", ".join(damaged)) if damaged else folder.status()
    except (KeyError, TypeError, AttributeError):  # JSON of the wrong shape
        state, reason = "damaged", f"{folder.result.name} or {folder.state.name}"
    return {"state": state, "reason": reason}


def _facts_on_disk(folder: TrialFolder) -> dict[str, Any]:
    environment = read_json(folder.environment) or {}
    command = _read_yaml_or_nothing(folder).get("command")
    return {"command": command, "device": environment.get("device"), "commit": environment.get("commit")}


def _results(result: dict[str, Any]) -> dict[str, float]:
    metrics = result.get("metrics") or {}
    return {name: _number(metrics.get(name)) for name in METRICS} | {
        name: _number(result.get(name)) for name in NUMBERS
    }


def _read_curves(folder: TrialFolder) -> pd.DataFrame:
    rows = [
        (_key(folder), row["epoch"], row["name"], _number(row.get("value")))
        for row in read_metrics(folder.metrics)
        if row["name"] in CURVES
    ]
    curves: pd.DataFrame = pd.DataFrame(rows, columns=_EMPTY_CURVES.columns)
    return curves


def _means_by_epoch(weights: pa.Table) -> pd.DataFrame:
    """Means over layers, each layer counted once, of the network and of every stage."""
    by, mean = ["epoch", "statistic", "normalizer"], [("weight", "mean")]
    network = weights.group_by(by).aggregate(mean).to_pandas().assign(scope="network")
    stages = weights.group_by([*by, "stage"]).aggregate(mean).to_pandas()
    stages["scope"] = [f"stage {stage}" for stage in stages.pop("stage")]
    means: pd.DataFrame = pd.concat([network, stages]).rename(columns={"weight_mean": "weight"})
    return means


def _trial_table(rows: Sequence[dict[str, Any]], factors: Sequence[str]) -> pd.DataFrame:
    names = ("key", "trial_id", "replicate", *factors, *ALWAYS, "state", "reason", *METRICS, *NUMBERS, *FACTS)
    numbers = {*METRICS, *NUMBERS}
    # Levels keep their own type (None, true and 1 are different levels), and what is not known stays None.
    columns = {name: pd.Series([row.get(name) for row in rows], dtype=float if name in numbers else object)
               for name in names}  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def _number(value: object) -> float:
    """A finite number, or NaN."""
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else float("nan")


def _key(folder: TrialFolder) -> str:
    return f"{folder.trial_id}-{folder.path.name}"


def _concat(frames: Iterable[pd.DataFrame | None], empty: pd.DataFrame) -> pd.DataFrame:
    filled = [frame for frame in frames if frame is not None and len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else empty.copy()
