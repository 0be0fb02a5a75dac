"""The summary run of a study on W&B: its verdicts, and the figures and tables of its report."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import pandas as pd

from study.analysis.report.report import Report
from study.analysis.report.tables import build_coverage_table, build_effects_table
from study.analysis.wording import format_slug
from study.config.schema import TrackingConfig
from study.record.io import file_digest, read_json, write_json
from study.record.wandb_links import link_wandb_runs

if TYPE_CHECKING:  # importing W&B is slow, and a finished study does not need it
    import plotly.graph_objects as go
    import wandb

    from study.record.wandb_mode import Mode

COVERAGE = "coverage/cells"  # the name of the coverage table on W&B


def write_summary_once(report: Report, tracking: TrackingConfig) -> None:
    """Writes the summary run of a written report, unless one with the same answers exists.

    A failure of W&B is logged and not raised.
    """
    folder = report.folder
    known, answers = read_json(folder.dashboard) or {}, file_digest(folder.report / "answers.json")
    if tracking.mode == "disabled" or answers is None or known.get("summary") == answers["sha256"]:
        return
    from study.record.wandb_mode import resolve_mode

    mode = resolve_mode(tracking)
    try:
        if mode != "disabled":
            write_summary(report, mode)
    except Exception as error:  # W&B may fail in any way, which must not fail the study
        logging.getLogger("study").warning("W&B failed, so there is no summary run: %s", error)


def write_summary(report: Report, mode: Mode) -> None:
    """Writes or replaces the summary run of a study, and records the digest of its answers in the study's folder.

    The run's id is `summary-<study>`, its group the study's name. Passes on all errors of W&B.
    """
    import wandb

    from study.record.wandb_run import start_run

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    study, folder = report.records.study, report.folder
    run = start_run(
        folder.report, f"summary-{study.name}", mode=mode, tracking=study.tracking, group=study.name,
        job_type="summary", tags=["summary"],
        config={**study.model_dump(mode="json", include={"title", "question", "scale", "factors", "replicates"}),
                "command": report.records.provenance.get("command")},
    )  # fmt: skip
    with run:
        run.log({
            **{name: wandb.Plotly(figure) for name, figure in name_figures(report).items()},
            **{name: _build_wandb_table(table) for name, table in build_tables(report).items()},
        })  # fmt: skip
        run.summary.update(summarize_verdicts(report))
    link_wandb_runs(folder)
    answers = file_digest(folder.report / "answers.json") or {}
    write_json(folder.dashboard, {**(read_json(folder.dashboard) or {}), "summary": answers.get("sha256")})


def name_figures(report: Report) -> dict[str, go.Figure]:
    """The report's figures by their name on W&B, `useful/<title>`."""
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
    effects = {
        f"{question}/effects": build_effects_table(answer.effects) for question, answer in report.answers.items()
    }
    filled = {name: table for name, table in effects.items() if len(table)}
    return {**filled, COVERAGE: build_coverage_table(report.records)}


def _build_wandb_table(frame: pd.DataFrame) -> wandb.Table:
    import wandb

    return wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))
