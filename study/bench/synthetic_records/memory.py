"""Synthetic records in memory: the data frames that `load_study_records` would give, without any file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from study.analysis.duplicates import find_duplicates, mark_duplicates
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.statistics.intervals import Floats
from study.analysis.trial_files import CURVES, METRICS
from study.analysis.weight_tables import BACKBONE
from study.bench.synthetic_records.contents import (
    DIVERGED_REASON,
    FAILED_REASON,
    build_norm_layers,
    compute_curves,
    compute_metrics,
)
from study.bench.synthetic_records.files import TrialFilter, write_study
from study.bench.synthetic_records.truth import SimulatedRun, Truth, simulate_run
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder


class SyntheticStudy:
    """One study whose records can be drawn from many truths. What does not depend on the truth is made only once."""

    def __init__(self, study: StudyConfig) -> None:
        self.plan = plan_trials(study)
        self.layers = [build_norm_layers(trial.config) for trial in self.plan]
        with tempfile.TemporaryDirectory(prefix="study-synthetic-") as scratch:
            finished, planned = (StudyFolder(Path(scratch) / name / study.name) for name in ("finished", "planned"))
            write_study(finished, study, Truth())
            write_study(planned, study, Truth(), only=lambda trial: False)
            self.finished, self.planned = load_study_records(finished), _join_runs(load_study_records(planned))
        self.template = _Template(self.finished, [trial.key for trial in self.plan])

    def draw_records(
        self,
        truth: Truth,
        *,
        only: TrialFilter = lambda trial: True,
        diverged: TrialFilter = lambda trial: False,
        failed: TrialFilter = lambda trial: False,
    ) -> StudyRecords:
        """What `load_study_records` reads from the files that `write_study` writes with the same arguments."""
        runs = [simulate_run(trial, layers, truth) for trial, layers in zip(self.plan, self.layers, strict=True)]
        states = [
            "failed" if failed(trial) or (only(trial) and run.failed)
            else "planned" if not only(trial)
            else "diverged" if run.diverged or diverged(trial) else "done"
            for trial, run in zip(self.plan, runs, strict=True)
        ]  # fmt: skip
        has_result = [state in ("done", "diverged") for state in states]
        weights = np.concatenate([run.history.ravel() for run in runs])
        curves = self._compute_curve_values(runs)
        trials = self._build_trial_table(runs, np.array(states))
        frames = self.template.fill(weights, curves, np.array(has_result))
        repeated = find_duplicates(
            trials, self.template.append_keys(frames["weights"], np.array(has_result)), frames["curves"]
        )
        if not repeated.empty:
            trials = mark_duplicates(trials, repeated)
            frames = self.template.fill(weights, curves, np.array(has_result) & ~trials.index.isin(repeated.index))
        is_seed_run = trials.index.isin(self.finished.seed_runs.index)
        return replace(self.finished, trials=trials[~is_seed_run], seed_runs=trials[is_seed_run], **frames)

    def _compute_curve_values(self, runs: Sequence[SimulatedRun]) -> Floats:
        """Values of the curves that the data frame holds, in its order: by trial, epoch and curve."""
        parts = []
        for trial, run in zip(self.plan, runs, strict=True):
            kept = [values for name, values in compute_curves(trial, run).items() if name in CURVES]
            parts.append(np.stack(kept, axis=1).ravel())
        return np.concatenate(parts)

    def _build_trial_table(self, runs: Sequence[SimulatedRun], states: NDArray[np.str_]) -> pd.DataFrame:
        """The table of all trials, in the order of the plan. Only trials that are done have metrics."""
        without_result = np.isin(states, ("planned", "failed"))
        rows = [compute_metrics(trial.config.task, run.accuracy) for trial, run in zip(self.plan, runs, strict=True)]
        metrics = {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in METRICS}
        reasons = {"diverged": DIVERGED_REASON, "failed": FAILED_REASON}
        finished = _join_runs(self.finished)
        columns: dict[str, Any] = {str(name): finished[name] for name in finished}
        if without_result.any():
            columns = {name: column.mask(without_result, self.planned[name]) for name, column in columns.items()}
        # A frame of columns is built several times faster than columns are assigned one by one.
        trials: pd.DataFrame = pd.DataFrame({
            **columns, **{name: np.where(states == "done", values, np.nan) for name, values in metrics.items()},
            "state": pd.Series(states.tolist(), dtype=object),
            "reason": pd.Series([reasons.get(str(state), "") for state in states], dtype=object),
        })  # fmt: skip
        return trials


def _join_runs(records: StudyRecords) -> pd.DataFrame:
    """Replicates and runs with seeds that are varied apart, in the order of the plan."""
    joined: pd.DataFrame = pd.concat([records.trials, records.seed_runs]).sort_index()
    return joined


class _Template:
    """The frames of a study in which every trial has finished, and the rows into which simulated numbers go."""

    def __init__(self, finished: StudyRecords, keys: Sequence[str]) -> None:
        """`keys`: of the trials, in the order in which `fill` is given their numbers."""
        self.finished, self.keys = finished, list(keys)
        weights = finished.weights.to_pandas()
        weights["key"] = weights["trial_id"].astype(str) + "-r" + weights["replicate"].astype(str)
        is_last = weights["epoch"].eq(weights.groupby("key")["epoch"].transform("max"))
        in_backbone = weights["role"].eq(BACKBONE)
        self.switch, self.heads = (np.flatnonzero(is_last & chosen) for chosen in (in_backbone, ~in_backbone))
        self.backbone = np.flatnonzero(in_backbone)
        self.mean_rows = _find_mean_rows(weights[in_backbone], finished.switch_epochs)
        self.mean_sizes = np.bincount(np.concatenate(self.mean_rows), minlength=len(finished.switch_epochs))
        frames = {
            "weights": weights, "switch": finished.switch, "heads": finished.heads,
            "switch_epochs": finished.switch_epochs, "curves": finished.curves,
        }  # fmt: skip
        self.trials = {name: pd.Index(keys).get_indexer(frame["key"].astype(str)) for name, frame in frames.items()}

    def append_keys(self, weights: pa.Table, has_result: NDArray[np.bool_]) -> pa.Table:
        """Switch weights from `fill` with the keys of their trials as a further column."""
        trials = self.trials["weights"]
        rows = trials[has_result[trials]]
        return weights.append_column("key", pa.DictionaryArray.from_arrays(rows.astype(np.int32), self.keys))

    def fill(self, weights: NDArray[np.float32], curves: Floats, has_result: NDArray[np.bool_]) -> dict[str, Any]:
        """The frames with these switch weights and curve values, without the rows of trials that have no result."""
        finished = self.finished
        sums = np.bincount(
            np.concatenate(self.mean_rows), np.tile(weights[self.backbone], len(self.mean_rows)),
            minlength=len(self.mean_sizes),
        )  # fmt: skip
        column = finished.weights.schema.get_field_index("weight")
        table = finished.weights.set_column(column, finished.weights.schema.field(column), pa.array(weights))
        frames = {
            "switch": finished.switch.assign(weight=weights[self.switch]),
            "heads": finished.heads.assign(weight=weights[self.heads]),
            "switch_epochs": finished.switch_epochs.assign(weight=sums / self.mean_sizes),
            "curves": finished.curves.assign(value=curves),
        }
        if not has_result.all():
            kept = {name: has_result[trials] for name, trials in self.trials.items()}
            table = table.filter(pa.array(kept["weights"]))
            frames = {name: frame[kept[name]].reset_index(drop=True) for name, frame in frames.items()}
        return {"weights": table, **frames}


def _find_mean_rows(weights: pd.DataFrame, means: pd.DataFrame) -> list[NDArray[np.intp]]:
    """For every switch weight, the row of its network's mean, and the row of its stage's mean."""
    by = ["key", "epoch", "statistic", "normalizer"]
    numbered = means.assign(row=np.arange(len(means)))
    weights = weights[[*by, "stage"]].astype({name: str for name in by if name != "epoch"})
    scopes = (pd.Series("network", weights.index), "stage " + weights["stage"].astype(str))
    return [
        weights.assign(scope=scope).merge(numbered, on=[*by, "scope"], how="left")["row"].to_numpy() for scope in scopes
    ]
