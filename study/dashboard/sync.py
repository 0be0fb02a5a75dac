"""Uploads what the records of a study hold and the W&B server lacks, so that each epoch is there once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
from filelock import Timeout

from study.config.errors import UserError
from study.config.schema import StudyConfig, TrackingConfig
from study.dashboard.summary import count_untracked, is_summary_uploaded, write_summary
from study.plan.loading import StudyFile, read_study_file
from study.record.contents import DamagedFileError, read_metrics
from study.record.io import read_json
from study.record.layout import StudyFolder, TrialFolder
from study.record.switch_weights import read_last_weights
from study.record.wandb_links import find_runs_below, link_wandb_runs, mark_uploaded
from study.record.wandb_names import StudyRuns, build_run_config, name_runs
from study.record.wandb_run import Tracker, isolate_wandb
from study.record.wandb_server import (
    Connection,
    ServerError,
    ServerRun,
    ask_server,
    format_error,
    list_runs,
    requested_mode,
)  # fmt: skip
from study.record.wandb_status import RunStatus, describe_end

PATIENCE_SECONDS = 10.0  # a failure that took longer is one of the server, and the next upload would take as long


@dataclass(kw_only=True)
class SyncResult:
    """Keys of the trials by what was done: uploaded now, complete before, being trained, or not uploaded and why."""

    uploaded: list[str] = field(default_factory=list)
    complete: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    gave_up: bool = False
    url: str | None = None


def sync(
    folder: StudyFolder, study: StudyConfig, report_progress: Callable[[str], None] = lambda line: None
) -> SyncResult:
    """Compares every trial with its run on the server, and uploads the rest. Raises `UserError` without a server.

    A trial that is still training is skipped. The summary run is written if the report has other answers.

    study: the recorded one, which may have other settings of `tracking`.
    """
    check_wanted(folder, study.tracking, "sync")
    isolate_wandb()
    file = read_study_file(folder.config)
    try:
        with folder.sync_lock().acquire(blocking=False):
            connection = ask_server(study.tracking)
            # No metrics and no description of this machine: another one may have trained.
            tracking = study.tracking.model_copy(update={"system_metrics": False})
            runs = replace(name_runs(study, file.study_id, connection.project_url), tracking=tracking)
            known = list_runs(connection, tracking, runs.group)
            result = SyncResult(url=connection.project_url)
            for trial in folder.trials():
                _sync_trial(trial, file, runs, known, result, report_progress)
            if not result.gave_up:
                _sync_summary(folder, runs, connection, known, result, report_progress)
    except Timeout:
        raise UserError(f"sync: another `sync` of {folder.path} is running") from None
    except ServerError as error:
        raise UserError(f"sync: W&B: {error}") from None
    link_wandb_runs(folder)
    return result


def check_wanted(folder: StudyFolder, tracking: TrackingConfig, verb: str) -> None:
    """Raises `UserError` if the user has disabled W&B, now or when the trials ran, and does not ask for it now."""
    disabled = count_untracked(folder)
    if requested_mode(tracking) == "disabled" or (disabled and tracking.mode != "online"):
        ran = f"{disabled} of the trials ran without it" if disabled else "by tracking.mode or $WANDB_MODE"
        raise UserError(
            f"{verb}: W&B is disabled ({ran}); to upload the study all the same, add --set tracking.mode=online"
        )


def _sync_summary(
    folder: StudyFolder,
    runs: StudyRuns,
    connection: Connection,
    known: dict[str, ServerRun],
    result: SyncResult,
    report_progress: Callable[[str], None],
) -> None:
    if not (folder.report / "answers.json").is_file() or is_summary_uploaded(folder, known):
        return
    from study.analysis.report.report import Report  # takes seconds

    report_progress("summary")
    try:
        write_summary(Report(folder), runs, connection)
    except Exception as error:  # W&B may fail in any way
        result.failed["summary"] = format_error(error)


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a trial's run holds if it is complete: the values of each epoch, maybe a table, and how the trial ended."""

    description: dict[str, Any]
    epochs: list[dict[str, float | None]]
    has_table: bool
    status: RunStatus

    @property
    def lines(self) -> int:
        return sum(map(bool, self.epochs)) + self.has_table


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
            if not trial.trial.exists():
                return  # it has not started
            record = _read_record(trial)
            run = known.get(runs.build_run_id(trial.key))
            if run is not None and _is_complete(record, run):
                result.complete.append(trial.key)
            elif result.gave_up:
                result.failed[trial.key] = "the server did not take the data of the trial before"
                return
            else:
                report_progress(trial.key)
                started = time.monotonic()
                if problem := _upload(trial, record, file, runs):
                    result.failed[trial.key] = problem
                    result.gave_up = time.monotonic() - started > PATIENCE_SECONDS
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
    status, tags = record.status, record.status.update_tags(run.tags, record.description["levels"])
    return (
        run.lines >= record.lines
        and run.summary.get("status") == status.status
        and run.state != "running"
        and (run.state == "finished") == status.is_finished
        and set(run.tags) == set(tags)
        and run.notes == status.update_notes(run.notes)
    )


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
    return _Record(
        description=trial.read_description(), epochs=epochs, status=describe_end(result, trial.read_state()),
        has_table=result is not None and pq.read_metadata(trial.switch_weights).num_rows > 0,
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
    description, status = record.description, record.status
    config = build_run_config(description, read_json(trial.environment) or {}, status.attempt)
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
        if status.is_finished:
            tracker.log_checkpoint(trial.last_checkpoint)
        tracker.end(status)
        return tracker.close()
