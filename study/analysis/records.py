"""Reads what a study left on disk. What cannot be read is counted and named, never dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from study.analysis.statistics.intervals import Floats, cell_numbers
from study.analysis.statistics.measures import Measure, build_measures
from study.analysis.statistics.profiles import depth_profiles
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import UserError, allowed_names
from study.config.schema import StudyConfig
from study.config.yaml_input import read_yaml
from study.norms.names import parse_norm
from study.plan.loading import study_from_dict
from study.plan.trials import PlannedTrial, plan_trial, plan_trials
from study.record.io import read_json, read_metrics
from study.record.layout import FINISHED, SCHEMA_VERSION, StudyFolder, TrialFolder
from study.record.switch_weights import SWITCH_WEIGHTS_SCHEMA

EVALUATED = ("val", "test", "fit")  # splits; fit is the training split, seen as the others are
METRICS = (
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss"),
    *("fit_accuracy", "fit_loss", "generalization_gap"),
    *(f"{split}_{name}" for name in ("score", "miou", "pixel_accuracy", "box_ap", "mask_ap") for split in EVALUATED),
)
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_score", "learning_rate")
# Columns of the trial table even where the study does not vary them.
ALWAYS = ("norm", "depth", "batch_size", "task", "dataset")
BACKBONE = "backbone"  # the role that is compared; heads are shown apart
NUMBERS = ("parameters", "norm_layers", "seconds")
FACTS = ("start", "statistics_batch", "gradient_batch", "pool", "command", "device", "commit", "wandb")


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """All that is known of a study.

    space: what the layers of its networks choose from.
    trials: a row a planned trial (of a search: a trial found on disk). Columns: key, trial_id, replicate, one
        a factor, `ALWAYS`, state, reason, `METRICS` (NaN where null), `NUMBERS` and `FACTS`.
    weights: switch weights of every trial and epoch: the columns of `switch_weights.parquet`, text coded.
    switch: those of each trial's last epoch, with its key; of backbones alone.
    heads: the same of everything else: FPN, box head, mask head, decoder.
    switch_epochs: means over the layers of the backbone: key, epoch, scope ("network", "stage 1"), statistic,
        normalizer, weight.
    curves: metrics by epoch: key, epoch, name, value.
    unplanned: keys of trials on disk that the plan does not name.
    """

    folder: StudyFolder
    study: StudyConfig
    space: ChoiceSpace
    provenance: dict[str, Any]
    trials: pd.DataFrame
    weights: pa.Table
    switch: pd.DataFrame
    heads: pd.DataFrame
    switch_epochs: pd.DataFrame
    curves: pd.DataFrame
    unplanned: tuple[str, ...]

    @cached_property
    def profiles(self) -> dict[str, Floats]:
        """What each network chose, by key: `depth_profiles` of the last epoch."""
        return depth_profiles(self.switch, self.space)

    @property
    def measures(self) -> dict[str, Measure]:
        """All kinds of numbers that answers about this study may hold, by name."""
        return build_measures(self.space)

    @property
    def from_scratch(self) -> pd.DataFrame:
        """The planned trials that norms and factors are compared over, where a study varies how trials start.

        Those from scratch: others have trained for longer, and a rule may have made their choices. Without them, those
        that a start has left to go on learning.
        """
        levels = self.levels("start_rule") if "start_rule" in self.study.factors else []
        rule = next((rule for rule in ("scratch", "fine_tune") if rule in levels), None)
        from_scratch: pd.DataFrame = self.trials if rule is None else self.trials[self.trials["start_rule"].eq(rule)]
        return from_scratch

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
        """The norm of the networks whose choices are studied.

        That is `sn`, else the first switch norm without a control, if any; where layers choose from something other
        than normalizers, it is the first norm of the study.
        """
        if self.space != NORMALIZATION:
            return str(self.levels("norm")[0])
        specs = {norm: parse_norm(norm) for norm in self.levels("norm")}
        free = [norm for norm, spec in specs.items() if spec.is_switch and spec.control is None]
        return "sn" if "sn" in free else next(iter(free), None)

    def balanced_subset(self, trials: pd.DataFrame, *axes: str) -> pd.DataFrame:
        """The planned trials whose means over all other factors compare like with like between levels of the axes.

        In a study of blocks those at the levels of the other factors that hold the most cells: the base's.
        """
        if not self.study.blocks:
            return trials
        others = cell_numbers(trials, [factor for factor in self.study.factors if factor not in axes])
        sizes = cell_numbers(trials, axes).groupby(others).nunique()
        found: pd.DataFrame = trials[others.map(sizes).eq(sizes.max())]
        return found

    def levels(self, factor: str) -> list[Any]:
        """The levels of a factor in the study's order; the base's level where the study does not vary it."""
        listed = self.study.factors.get(factor, [getattr(self.study.base, factor)])
        return listed if isinstance(listed, list) else sorted(self.trials[factor].dropna().unique())


def load_study_records(folder: StudyFolder) -> StudyRecords:
    """Reads a study of any completeness: no trials, one, some, all.

    Raises `UserError` where `study.yaml` is missing or no study. A damaged trial is a row of state `damaged`.
    """
    study, provenance, space = read_study(folder)
    on_disk = list(folder.trials())
    planned: list[tuple[TrialFolder, PlannedTrial | None]] = (
        [(trial, _read_plan(study, trial)) for trial in on_disk]
        if study.search
        else [(folder.trial(plan.trial_id, plan.replicate), plan) for plan in plan_trials(study, space)]
    )
    records = [_read_trial(trial, plan, space) for trial, plan in planned]
    known = {trial.path for trial, _ in planned}
    weights = _join_weights(records)
    backbone, heads = _split_roles(weights)
    return StudyRecords(
        folder=folder, study=study, space=space, provenance=provenance,
        trials=_trial_table([record.row for record in records], list(study.factors)),
        weights=weights.drop_columns("key"), switch=_last_epochs(backbone), heads=_last_epochs(heads),
        switch_epochs=_means_by_epoch(backbone),
        curves=pd.DataFrame([row for record in records for row in record.curves], columns=list(_CURVE_COLUMNS)),
        unplanned=tuple(_key(trial) for trial in on_disk if trial.path not in known),
    )  # fmt: skip


def read_switch_weights(file: Any, space: ChoiceSpace = NORMALIZATION) -> pa.Table:
    """The switch weights of one trial, every epoch, with text coded. Raises `ValueError` if damaged."""
    try:
        metadata = pq.read_metadata(file)
        if lacking := set(SWITCH_WEIGHTS_SCHEMA.names) - set(metadata.schema.names):
            raise ValueError(f"lacks the columns {', '.join(sorted(lacking))}")
        if not metadata.num_rows:  # a norm without a choice
            return _CODED_SCHEMA.empty_table()
        # By one thread: to hand a small file to several takes longer than to read it.
        with pq.ParquetFile(file, metadata=metadata, read_dictionary=_TEXT) as source:
            table = source.read(SWITCH_WEIGHTS_SCHEMA.names, use_threads=False)
        if table.schema != _CODED_SCHEMA:
            table = table.cast(_CODED_SCHEMA)
        by = table.group_by(["epoch", "layer_index", "statistic"], use_threads=False)
        sums = by.aggregate([("weight", "sum")])["weight_sum"]
        names = {*table["statistic"].unique().to_pylist()}, {*table["normalizer"].unique().to_pylist()}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: {str(error).splitlines()[0]}") from None
    if not (names[0] <= {*space.axis_names} and names[1] <= {*space.member_names}):
        raise ValueError("holds an unknown statistic or normalizer")
    if not np.allclose(sums.to_numpy(), 1, atol=1e-3):
        raise ValueError("holds weights that do not sum to 1 over the normalizers")
    return table


# The C loader is ten times faster where PyYAML has it; a study of a thousand trials feels that.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CURVE_COLUMNS = ("key", "epoch", "name", "value")
# Text that repeats in every row is kept as codes: ten thousand trials have millions of rows.
_CODED = pa.dictionary(pa.int32(), pa.string())
_TEXT = [field.name for field in SWITCH_WEIGHTS_SCHEMA if field.type == pa.string()]
_CODED_SCHEMA = pa.schema(
    [(field.name, _CODED if field.name in _TEXT else field.type) for field in SWITCH_WEIGHTS_SCHEMA]
)


@dataclass(kw_only=True)
class _TrialRecord:
    """A row of the trial table and what belongs to it."""

    row: dict[str, Any]
    curves: list[tuple[str, int, str, float]]
    weights: pa.Table | None = None


def read_study(folder: StudyFolder) -> tuple[StudyConfig, dict[str, Any], ChoiceSpace]:
    """The study of a folder, its provenance (command, commit, versions), and what layers choose from.

    Raises `UserError` where the folder holds no study, or a damaged one.
    """
    if not folder.config.exists():
        beside = sorted(path.parent.name for path in folder.path.parent.glob("*/study.yaml"))
        nearest = f"; {allowed_names(folder.path.name, beside)}" if beside else ""
        raise UserError(f"{folder.config}: no study here{nearest}")
    data = read_yaml(folder.config)
    if not isinstance(data.get("study"), dict):
        raise UserError(f"{folder.config}: study: expected keys and values")
    study = study_from_dict(data["study"], str(folder.config))
    space = ChoiceSpace.from_dict(data.get("choice_space"), str(folder.config))
    return study, dict(data.get("provenance") or {}), space


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


def _read_trial(folder: TrialFolder, plan: PlannedTrial | None, space: ChoiceSpace) -> _TrialRecord:
    row = {**_planned_facts(folder, plan), **_state_and_results(folder, plan), **_facts_on_disk(folder)}
    record = _TrialRecord(row=row, curves=_read_curves(folder))
    if row["state"] == "damaged" or not folder.switch_weights.is_file():
        return record
    try:
        weights = read_switch_weights(folder.switch_weights, space)
    except ValueError as error:
        if row["state"] != "running":  # a running trial may be writing it
            row |= {"state": "damaged", "reason": f"{folder.switch_weights.name}: {error}"}
        return record
    if weights.num_rows:  # a norm without a choice has none
        record.weights = weights
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
        "start": plan.source and plan.source.describe(plan.replicate),
        "statistics_batch": plan.statistics_batch,
        "gradient_batch": plan.gradient_batch,
        "pool": ",".join(plan.pool),
    }


def _state_and_results(folder: TrialFolder, plan: PlannedTrial | None) -> dict[str, Any]:
    try:
        result, damaged = folder.check()
        damaged += [] if plan else [folder.trial.name]
        if damaged:
            return {"state": "damaged", "reason": "; ".join(_say_damage(folder, name) for name in damaged)}
        if result is not None:
            return {"state": result["status"], "reason": result.get("reason") or "", **_results(result)}
        state, reason = folder.status()
    except (KeyError, TypeError, AttributeError):  # JSON of the wrong shape
        state, reason = "damaged", f"{folder.result.name} or {folder.state.name}"
    return {"state": state, "reason": reason}


def _say_damage(folder: TrialFolder, name: str) -> str:
    """What is wrong with a file of a trial that has ended."""
    path = folder.path / name
    if not path.exists():
        return f"{name}: missing"
    if name == folder.result.name:
        result = read_json(path)
        if result is None:
            return f"{name}: half-written"
        if result.get("schema") != SCHEMA_VERSION:
            return f"{name}: of schema {result.get('schema')}, and this version reads {SCHEMA_VERSION}"
        return f"{name}: lacks what a result holds"
    return f"{name}: not as it was when the trial ended"


def _facts_on_disk(folder: TrialFolder) -> dict[str, Any]:
    environment = read_json(folder.environment) or {}
    wandb = environment.get("wandb")
    url = wandb.get("url") if isinstance(wandb, dict) else None  # of the run on W&B; offline there is none
    found = {name: environment.get(name) for name in ("device", "commit")}
    return {"command": _read_command(folder), **found, "wandb": url}


def _read_command(folder: TrialFolder) -> object:
    """The command in trial.yaml. Only its own lines are parsed: the whole file would take most of a report's time."""
    try:
        lines = re.search(r"^command:.*(\n[ \t].*)*", folder.trial.read_text(encoding="utf-8"), re.MULTILINE)
        return yaml.load(lines[0], Loader=_YAML_LOADER)["command"] if lines else None  # noqa: S506  (both are safe)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _results(result: dict[str, Any]) -> dict[str, float]:
    metrics = result["metrics"]
    return {name: _number(metrics.get(name)) for name in METRICS} | {
        name: _number(result.get(name)) for name in NUMBERS
    }


def _read_curves(folder: TrialFolder) -> list[tuple[str, int, str, float]]:
    key = _key(folder)
    return [
        (key, row["epoch"], row["name"], _number(row.get("value")))
        for row in read_metrics(folder.metrics)
        if row["name"] in CURVES
    ]


def _join_weights(records: Sequence[_TrialRecord]) -> pa.Table:
    """The switch weights of every trial that has them, with its key."""
    tables = [_CODED_SCHEMA.append(pa.field("key", _CODED)).empty_table()]
    for record in records:
        if record.weights is not None:
            codes = np.zeros(record.weights.num_rows, np.int32)
            key = pa.DictionaryArray.from_arrays(codes, pa.array([record.row["key"]]))
            tables.append(record.weights.append_column("key", key))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _split_roles(weights: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of backbones, and all others."""
    if weights["role"].unique().to_pylist() in ([], [BACKBONE]):  # nothing to copy
        return weights, weights.slice(0, 0)
    of_backbone = pc.equal(weights["role"].cast(pa.string()), BACKBONE)
    return weights.filter(of_backbone), weights.filter(pc.invert(of_backbone))


def _last_epochs(weights: pa.Table) -> pd.DataFrame:
    """The rows of each trial's last epoch."""
    epochs = weights["epoch"].to_pandas()
    last = epochs.groupby(weights["key"].combine_chunks().indices.to_numpy()).transform("max")
    frame: pd.DataFrame = _decode(weights.filter(pa.array(epochs.eq(last)))).to_pandas()
    return frame


def _means_by_epoch(weights: pa.Table) -> pd.DataFrame:
    """Means over layers, each layer counted once, of the network and of every stage."""
    by, mean = ["key", "epoch", "statistic", "normalizer"], [("weight", "mean")]
    network, stages = (
        _decode(weights.group_by(names, use_threads=False).aggregate(mean)).to_pandas()
        for names in (by, [*by, "stage"])
    )
    network["scope"], stages["scope"] = "network", "stage " + stages.pop("stage").astype(str)
    means: pd.DataFrame = pd.concat([network, stages], ignore_index=True).rename(columns={"weight_mean": "weight"})
    return means


def _decode(table: pa.Table) -> pa.Table:
    """The table with its text as text."""
    return table.cast(pa.schema([(field.name, pa.string() if field.type == _CODED else field.type)
                                 for field in table.schema]))  # fmt: skip


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
