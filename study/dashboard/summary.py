"""The summary run of a study: its verdicts, and the figures and tables of its report, beside the runs of its trials."""

from __future__ import annotations

import base64
import logging
import math
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from study.analysis.report.report import Report
from study.analysis.report.tables import coverage_table, effects_table
from study.config.schema import TrackingConfig
from study.record.io import file_digest, read_json, write_json
from study.record.wandb_links import link_wandb_runs

if TYPE_CHECKING:  # a study that is finished needs no W&B
    import plotly.graph_objects as go
    import wandb

    from study.record.wandb_mode import Mode

COVERAGE = "coverage/cells"  # the name of a table


def write_summary_once(report: Report, tracking: TrackingConfig) -> None:
    """Writes the summary run of a written report, unless it is written already: a finished study costs nothing."""
    folder = report.folder
    known, answers = read_json(folder.dashboard) or {}, file_digest(folder.report / "answers.json")
    if tracking.mode == "disabled" or answers is None or known.get("summary") == answers["sha256"]:
        return
    from study.record.wandb_mode import resolve_mode

    mode = resolve_mode(tracking)
    try:
        if mode != "disabled":
            write_summary(report, mode)
    except Exception as error:  # W&B may fail in any way, and is not what a study is run for
        logging.getLogger("study").warning("W&B failed, there is no summary run: %s", error)


def write_summary(report: Report, mode: Mode) -> None:
    """Writes the summary run of a study, in place of an older one, and notes of which answers it is.

    Its id is `summary-<study>`, its group the study. Raises what W&B raises.
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
            **{name: wandb.Plotly(plain(figure)) for name, figure in figures(report).items()},
            **{name: _table(table) for name, table in tables(report).items()},
        })  # fmt: skip
        run.summary.update(verdicts(report))
    link_wandb_runs(folder)
    answers = file_digest(folder.report / "answers.json") or {}
    write_json(folder.dashboard, {**(read_json(folder.dashboard) or {}), "summary": answers.get("sha256")})


def figures(report: Report) -> dict[str, go.Figure]:
    """The report's figures by their name on W&B, `useful/<title>`."""
    return {
        f"{question}/{_slug(figure.layout.title.text)}": figure
        for question, drawn in report.evidence.items()
        for figure in drawn
    }


def verdicts(report: Report) -> dict[str, Any]:
    """What the run table shows of a study: its verdicts, and how much of it is done."""
    said = {
        f"{question}/{name}": getattr(answer, name)
        for question, answer in report.answers.items()
        for name in ("verdict", "answer")
    }
    return {**said, "trials/finished": report.records.n_finished, "trials/planned": report.records.n_planned}


def tables(report: Report) -> dict[str, pd.DataFrame]:
    """The effects of every answer, and how many trials of each cell are in which state."""
    effects = {f"{question}/effects": effects_table(answer.effects) for question, answer in report.answers.items()}
    filled = {name: table for name, table in effects.items() if len(table)}
    return {**filled, COVERAGE: coverage_table(report.records)}


def plain(figure: go.Figure) -> go.Figure:
    """The figure with lists in place of plotly's packed arrays, which W&B's page does not unpack."""
    import plotly.graph_objects as go

    return go.Figure(_unpack(figure.to_dict()), skip_invalid=True)


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "bdata" in value:
        packed = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = str(value.get("shape", packed.size)).split(",")
        return _unpack(packed.reshape([int(size) for size in shape]).tolist())
    if isinstance(value, dict):
        return {name: _unpack(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unpack(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(frame: pd.DataFrame) -> wandb.Table:
    import wandb

    return wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80]
