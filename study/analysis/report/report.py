"""The report: one self-contained page, the answers as JSON, and all data in tables."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq

from study.analysis.questions.answers import Answer
from study.analysis.questions.tasks import APART, TOGETHER, name_settings, task_factors
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.figure_index import draw_published, select_finished_choices
from study.analysis.report.page import render_page
from study.analysis.report.plan_text import build_plan_section
from study.analysis.report.registry import add_robustness, answer_questions, draw_figures
from study.analysis.report.tables import write_tables
from study.analysis.weight_tables import BACKBONE
from study.config.schema import AnalysisConfig
from study.record.io import write_bytes, write_json
from study.record.layout import StudyFolder

ANSWERS_SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """A study's records, answers and figures, each computed once, when it is first needed.

    Works on studies of any completeness. Raises `UserError` if the folder holds no study.

    analysis: settings in place of those in `study.yaml`; None for these.
    """

    folder: StudyFolder
    analysis: AnalysisConfig | None = None

    @cached_property
    def records(self) -> StudyRecords:
        return load_study_records(self.folder, self.analysis)

    @cached_property
    def answers(self) -> dict[str, Answer]:
        """The answer to each question, by its name, with what other analyses would have said."""
        return add_robustness(answer_questions(self.records), self.records)

    @cached_property
    def figures(self) -> dict[str, list[go.Figure]]:
        """The figures of each question."""
        return {name: draw_figures(name, self.records, answer) for name, answer in self.answers.items()}

    def write(self) -> Path:
        """Writes report.html, answers.json, switch_weights.parquet, trials.parquet and tables; returns the page's path.

        The same records give the same bytes.
        """
        folder, records = self.folder.report, self.records
        found = {name: answer.to_json() for name, answer in self.answers.items()}
        write_json(folder / "answers.json", {
            "schema": ANSWERS_SCHEMA, "study": records.study.name, "plan": build_plan_section(records),
            "questions": found,
        })  # fmt: skip
        write_bytes(folder / "trials.parquet", _encode_parquet(_build_arrow_table(records.trials)))
        write_bytes(folder / "switch_weights.parquet", _encode_parquet(records.weights, store_schema=False))
        write_tables(folder / "tables", records, self.answers)
        page, published = folder / "report.html", list(draw_published(self.folder))
        html = render_page(records, self.answers, self.figures, published, _average_heads(records))
        write_bytes(page, html.encode())
        return page

    def export(self) -> list[Path] | str:
        """Writes the figures as SVG and PDF, which needs a browser; returns the files, or why there are none."""
        from study.analysis.report.export import export_figures

        return export_figures(
            [figure for drawn in self.figures.values() for figure in drawn], self.folder.report / "figures"
        )


def write_report(folder: StudyFolder) -> Path:
    """Writes everything of a study's report that needs no browser; returns the page's path. Raises `UserError`."""
    return Report(folder).write()


def _average_heads(records: StudyRecords) -> list[dict[str, Any]]:
    """What heads and their backbones chose: one row per setting and role, with means over layers and finished runs."""
    if records.heads.empty:
        return []
    trials = name_settings(select_finished_choices(records, *APART, *task_factors(records.study)))
    weights = pd.concat([records.switch, records.heads]).merge(trials[["key", TOGETHER]], on="key")
    with_heads = weights[weights["role"].ne(BACKBONE)][TOGETHER].unique()
    groups = weights[weights[TOGETHER].isin(with_heads)].groupby([TOGETHER, "role"], sort=False)
    return [
        {"task": task, "role": role, "runs": group["key"].nunique(),
         "weights": group.groupby(["statistic", "normalizer"])["weight"].mean().to_dict()}
        for (task, role), group in groups
    ]  # fmt: skip


def _build_arrow_table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.infer_objects(), preserve_index=False)


def _encode_parquet(table: pa.Table, store_schema: bool = True) -> bytes:
    """A table as the bytes of a parquet file. Without Arrow's schema, dictionary-encoded text is read back as text."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=store_schema)
    return sink.getvalue()
