"""Uploads what the records of a study hold and the W&B server lacks, so that each epoch is there once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
from filelock import Timeout

from study.config.errors import UserError
from study.dashboard.summary import is_summary_uploaded, write_summary
from study.plan.loading import StudyFile, read_study_file
from study.record.contents import DamagedFileError, read_metrics
from study.record.io import read_json
from study.record.layout import StudyFolder, TrialFolder
from study.record.switch_weights import read_last_weights
from study.record.wandb_links import find_runs_below, link_wandb_runs, mark_uploaded
from study.record.wandb_names import StudyRuns, build_run_config
from study.record.wandb_run import NOT_IN_TIME, Tracker, isolate_wandb
from study.record.wandb_server import Connection, ServerError, ServerRun, ask_server, list_runs


@dataclass(kw_only=True)
class SyncResult:
    """Keys of the trials by what was done: uploaded now, complete before, being trained, or not uploaded and why."""

    uploaded: list[str] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    url: str | None = None


def sync(folder: StudyFolder, report_progress: Callable[[str], None] = lambda line: None) -> SyncResult:
    """Compares every trial with its run on the server, and uploads the rest. Raises `UserError` without a server.

    A trial that is still training is skipped. The summary run is written if the report has other answers.
    """
    isolate_wandb()
    file = read_study_file(folder.config)
    tracking = file.study.tracking
    try:
        connection = ask_server(tracking)
        runs = build_study_runs(file, connection)
        known = list_runs(connection, tracking, runs.group)
        result = SyncResult(url=connection.project_url)
        for trial in folder.trials():
            _sync_trial(trial, file, runs, known, result, report_progress)
    except ServerError as error:
        raise UserError(f"sync: W&B: {error}") from None
    if NOT_IN_TIME in result.failed.values():
        return result
    if (folder.report / "answers.json").is_file() and not is_summary_uploaded(folder, known):
        from study.analysis.report.report import Report  # takes seconds

        report_progress("summary")
        try:
            write_summary(Report(folder), connection)
        except Exception as error:  # W&B may fail in any way
            result.failed["summary"] = (str(error) or type(error).__name__).splitlines()[0]
    link_wandb_runs(folder)
    return result


def build_study_runs(file: StudyFile, connection: Connection) -> StudyRuns:
    """The names of a recorded study's runs."""
    return StudyRuns(
        study=file.study.name, study_id=file.study_id, tracking=file.study.tracking, project_url=connection.project_url
    )


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a trial's run holds if it is complete: the values of each epoch, maybe a table, and how the trial ended."""

    epochs: list[dict[str, float | None]]
    has_table: bool
    status: str | None
    reason: str | None
    metrics: dict[str, Any]

    @property
    def lines(self) -> int:
        return len(self.epochs) + self.has_table


def _sync_trial(
    trial: TrialFolder,
    file: StudyFile,
    runs: StudyRuns,
    known: dict[str, ServerRun],
    result: SyncResult,
    report_progress: Callable[[str], None],
) -> None:
    try:
        with trial.lock().acquire(blocking=False):
            record = _read_record(trial)
            run = known.get(runs.build_run_id(trial.key))
            if not record.epochs:
                return  # it has not started
            if run is not None and _is_complete(record, run):
                result.complete.append(trial.key)
            elif NOT_IN_TIME in result.failed.values():  # it would take half a minute for each
                result.failed[trial.key] = "the server did not take the data of the trial before"
                return
            else:
                report_progress(trial.key)
                if problem := _upload(trial, record, file, runs):
                    result.failed[trial.key] = problem
                    return
                result.uploaded.append(trial.key)
            for local in find_runs_below(trial.path):
                for log in local.glob("*.wandb"):
                    mark_uploaded(log)
    except Timeout:
        result.training.append(trial.key)
    except (DamagedFileError, OSError, ValueError) as error:
        result.failed[trial.key] = str(error).splitlines()[0]


def _is_complete(record: _Record, run: ServerRun) -> bool:
    ended = record.status is None or (run.summary.get("status") == record.status and run.state != "running")
    return run.lines >= record.lines and ended


def _read_record(trial: TrialFolder) -> _Record:
    """Raises `DamagedFileError`, `OSError` or `ValueError` where a file cannot be read, or is not the trial's."""
    result, damaged = trial.check()
    if damaged:
        raise ValueError("; ".join(map(trial.describe_damage, damaged)))
    epochs: list[dict[str, float | None]] = []
    for row in read_metrics(trial.metrics):
        if row["epoch"] > len(epochs) + 1:  # epoch 0 has no values where layers have no choice
            raise DamagedFileError(trial.metrics.name, f"lacks epochs before epoch {row['epoch']}")
        epochs += [{} for _ in range(len(epochs), row["epoch"] + 1)]
        epochs[row["epoch"]][row["name"]] = row["value"]
    if trial.switch_weights.is_file():
        for epoch, means in _average_stages(trial.switch_weights).items():
            if epoch < len(epochs):
                epochs[epoch] |= means
    state = trial.read_state()
    status = result["status"] if result else "failed" if state.get("state") == "failed" else None
    return _Record(
        epochs=epochs, has_table=bool(result) and pq.read_metadata(trial.switch_weights).num_rows > 0, status=status,
        reason=(result or state).get("reason"), metrics=result["metrics"] if result else {},
    )  # fmt: skip


def _average_stages(file: Path) -> dict[int, dict[str, float]]:
    """By epoch, the switch weights averaged over the layers of each stage of the backbone."""
    columns = ["epoch", "stage", "role", "statistic", "normalizer", "weight"]
    table = pq.read_table(file, columns=columns).to_pandas()
    table = table[table["role"] == "backbone"].astype({"weight": float})
    means: dict[int, dict[str, float]] = {}
    for key, mean in table.groupby(columns[:2] + columns[3:5])["weight"].mean().items():
        epoch, stage, statistic, normalizer = cast(tuple[int, int, str, str], key)
        means.setdefault(int(epoch), {})[f"switch/stage{stage}/{statistic}/{normalizer}"] = float(mean)
    return means


def _upload(trial: TrialFolder, record: _Record, file: StudyFile, runs: StudyRuns) -> str:
    """Writes a run from the record; returns what went wrong. W&B's files go elsewhere, so that the trial's stay."""
    description = trial.read_description()
    config = build_run_config(description, read_json(trial.environment) or {}, trial.attempts()[0])
    with tempfile.TemporaryDirectory() as scratch:
        tracker = Tracker(Path(scratch), trial.key, runs, "online")
        tracker.start(description["levels"], config)
        for epoch, values in enumerate(record.epochs):
            tracker.log_epoch(epoch, values)
        if record.has_table:
            layers, weights = read_last_weights(trial.switch_weights)
            tracker.log_switch_weights(
                weights, cast(Any, [SimpleNamespace(**layer) for layer in layers]), description["pool"], file.space,
                epochs=len(record.epochs) - 1,
            )  # fmt: skip
        if record.status:
            tracker.log_checkpoint(trial.last_checkpoint)
        tracker.end(record.status or "preempted", record.reason, record.metrics)
        return tracker.close()
