"""The summary run of a study on W&B: its verdicts, and the figures and tables of its report."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.plan.loading import read_study_file
from study.record.io import file_digest, read_json, write_json
from study.record.layout import StudyFolder
from study.record.wandb_links import link_wandb_runs, mark_uploaded
from study.record.wandb_names import StudyRuns, name_runs

if TYPE_CHECKING:  # importing W&B and reports is slow, and a finished or complete study does not need them
    import pandas as pd
    import plotly.graph_objects as go
    import wandb

    from study.analysis.report.report import Report
    from study.record.wandb_server import Connection, ServerRun

COVERAGE = "coverage/cells"  # the name of the coverage table on W&B
ANSWERS = "report/sha256"  # the name of the digest of answers.json on W&B


def write_summary_once(report: Report) -> None:
    """Writes the summary run of a written report, unless one with the same answers exists, or W&B was disabled.

    A failure of W&B is logged and not raised.
    """
    known, answers = read_json(report.folder.dashboard) or {}, _digest_answers(report.folder)
    tracking = report.records.study.tracking
    if tracking.mode == "disabled" or not answers or known.get("summary") == answers:
        return
    if tracking.mode != "online" and count_untracked(report.folder):
        return
    from study.record.wandb_server import connect

    try:
        connection = connect(tracking)
        if connection.mode != "disabled":
            study_id = read_study_file(report.folder.config).study_id
            write_summary(report, name_runs(report.records.study, study_id, connection.project_url), connection)
    except Exception as error:  # W&B may fail in any way, which must not fail the study
        logging.getLogger("study").warning("W&B: the summary run: %s", error)


def count_untracked(folder: StudyFolder) -> int:
    """Number of trials that ran while W&B was disabled."""
    runs = [(read_json(trial.environment) or {}).get("wandb") for trial in folder.trials()]
    return sum(isinstance(run, dict) and run.get("mode") == "disabled" for run in runs)


def write_summary(report: Report, runs: StudyRuns, connection: Connection) -> None:
    """Writes the summary run of a study, and records the digest of its answers in the study's folder.

    W&B can only add to a run, so that other answers are another run, `summary-<study>-<digest>`; earlier ones are
    deleted. Passes on all errors of W&B, and raises `ServerError` if the server does not take the run.
    """
    import wandb

    from study.record.wandb_run import isolate_wandb, log_files, start_run
    from study.record.wandb_server import ServerError, delete_run, list_runs

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    isolate_wandb()
    study, folder, answers = report.records.study, report.folder, _digest_answers(report.folder)
    name = f"summary-{study.name}"
    run, problem = start_run(
        folder.report, name, runs, mode=connection.mode, version=answers[:8], job_type="summary", tags=["summary"],
        config={**study.model_dump(mode="json", include={"title", "question", "scale", "factors", "replicates"}),
                "command": report.records.provenance.get("command")},
    )  # fmt: skip
    link_wandb_runs(folder)
    with run:
        if not run.starting_step:  # else the server has the same answers
            run.log({
                **{name: wandb.Plotly(figure) for name, figure in name_figures(report).items()},
                **{name: _build_wandb_table(table) for name, table in build_tables(report).items()},
            })  # fmt: skip
        run.summary.update({**summarize_verdicts(report), ANSWERS: answers})
        files = (folder.config, folder.report / "report.html", folder.report / "answers.json")
        log_files(run, f"{runs.group}-report", "report", filter(Path.is_file, files))
    if not run.offline:
        mark_uploaded(Path(run.settings.sync_file))
        for other in list_runs(connection, runs.tracking, runs.group).values():
            if other.name.startswith(name) and other.name != run.id:
                delete_run(other)
    write_json(folder.dashboard, {**(read_json(folder.dashboard) or {}), "summary": answers})
    if problem:
        raise ServerError(f"{problem}; it is recorded offline")


def is_summary_uploaded(folder: StudyFolder, runs: Mapping[str, ServerRun]) -> bool:
    """Whether one of the runs on the server is a summary run with the answers of the report."""
    answers = _digest_answers(folder)
    return any(run.summary.get(ANSWERS) == answers for run in runs.values())


def _digest_answers(folder: StudyFolder) -> str:
    """The digest of answers.json; empty if there is none."""
    return str((file_digest(folder.report / "answers.json") or {}).get("sha256", ""))


def name_figures(report: Report) -> dict[str, go.Figure]:
    """The report's figures by their name on W&B, `useful/<title>`."""
    from study.analysis.wording import format_slug

    return {
        f"{question}/{format_slug(figure.layout.title.text, 80)}": figure
        for question, drawn in report.figures.items()
        for figure in drawn
    }


def summarize_verdicts(report: Report) -> dict[str, Any]:
    """The summary values of the run: verdicts, claims and answers, and the numbers of finished and planned trials."""
    verdicts = {
        f"{question}/{name}": getattr(answer, name)
        for question, answer in report.answers.items()
        for name in ("verdict", "claim", "answer")
    }
    factors = {
        f"{question}/factors/{factor}": verdict
        for question, answer in report.answers.items()
        for factor, verdict in answer.factors.items()
    }
    trials = {"trials/finished": report.records.n_finished, "trials/planned": report.records.n_planned}
    return {**verdicts, **factors, **trials}


def build_tables(report: Report) -> dict[str, pd.DataFrame]:
    """The tables of effects, one an answer, and the coverage table, by their names on W&B."""
    from study.analysis.report.tables import build_coverage_table, build_effects_table

    effects = {
        f"{question}/effects": build_effects_table(answer.effects) for question, answer in report.answers.items()
    }
    filled = {name: table for name, table in effects.items() if len(table)}
    return {**filled, COVERAGE: build_coverage_table(report.records)}


def _build_wandb_table(frame: pd.DataFrame) -> wandb.Table:
    import wandb

    return wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))
