"""The report: one self-contained page, the answers as JSON, and all data in tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.analysis.answers import Answer
from study.analysis.evidence import draw_evidence, draw_published, finished_choices
from study.analysis.impacts import answer_impacts
from study.analysis.page import render_page
from study.analysis.records import BACKBONE, StudyRecords, load_study_records
from study.analysis.table_files import write_tables
from study.analysis.tasks import APART, TOGETHER, answer_tasks, name_settings, task_factors
from study.analysis.useful import answer_useful
from study.record.files import StudyFolder, write_bytes, write_json

SCHEMA = 1
QUESTIONS: Mapping[str, Callable[[StudyRecords], Answer]] = {
    "useful": answer_useful,
    "impacts": answer_impacts,
    "tasks": answer_tasks,
}


def write_report(folder: StudyFolder) -> Path:
    """Writes report.html, answers.json, switch_weights.parquet, trials.parquet and tables; returns the page's path.

    Works on any part of a study. `answers.json` depends on the records alone: same records, same bytes.
    Raises `UserError` where there is no study.
    """
    records = load_study_records(folder)
    answers = answer_questions(records)
    evidence = {name: list(draw_evidence(name, records, answer)) for name, answer in answers.items()}
    published = list(draw_published(folder))
    found = {name: answer.to_json() for name, answer in answers.items()}
    facts = {"schema": SCHEMA, "study": records.study.name, "questions": found}
    write_json(folder.report / "answers.json", facts)
    write_bytes(folder.report / "trials.parquet", _parquet(_plain_table(records.trials)))
    write_bytes(folder.report / "switch_weights.parquet", _parquet(records.weights, store_schema=False))
    write_tables(folder.report / "tables", records, answers)
    page = folder.report / "report.html"
    write_bytes(page, render_page(records, answers, evidence, published, _choices_by_role(records)).encode())
    return page


def answer_questions(records: StudyRecords) -> dict[str, Answer]:
    """The answers that the study asks for, by question."""
    return {name: QUESTIONS[name](records) for name in records.study.analysis.questions}


def _choices_by_role(records: StudyRecords) -> list[dict[str, Any]]:
    """What heads chose, beside their backbones: a row a setting and role, with means over layers and finished runs."""
    if records.heads.empty:
        return []
    trials = name_settings(finished_choices(records, *APART, *task_factors(records.study)))
    weights = pd.concat([records.switch, records.heads]).merge(trials[["key", TOGETHER]], on="key")
    with_heads = weights[weights["role"].ne(BACKBONE)][TOGETHER].unique()
    groups = weights[weights[TOGETHER].isin(with_heads)].groupby([TOGETHER, "role"], sort=False)
    return [
        {"task": task, "role": role, "runs": group["key"].nunique(),
         "weights": group.groupby(["statistic", "normalizer"])["weight"].mean().to_dict()}
        for (task, role), group in groups
    ]  # fmt: skip


def _plain_table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.infer_objects(), preserve_index=False)


def _parquet(table: pa.Table, store_schema: bool = True) -> bytes:
    """A table as a file. Without Arrow's own schema in it, coded text is read back as text."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=store_schema)
    return sink.getvalue()
