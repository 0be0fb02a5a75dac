"""The report: one self-contained page, the answers as JSON, and all data in two tables."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pyarrow as pa
import pyarrow.parquet as pq
from plotly.offline import get_plotlyjs

from study.analysis import figures
from study.analysis.answers import Answer, Effect, show_number, show_states
from study.analysis.impacts import answer_impacts
from study.analysis.measures import MEASURES
from study.analysis.profiles import STATISTICS
from study.analysis.records import BACKBONE, StudyRecords, load_study_records
from study.analysis.tasks import APART, TOGETHER, answer_tasks, name_settings, task_factors
from study.analysis.useful import answer_useful
from study.norms.names import NORMALIZERS
from study.record.files import StudyFolder, write_bytes, write_json

SCHEMA = 1
QUESTIONS: Mapping[str, Callable[[StudyRecords], Answer]] = {
    "useful": answer_useful,
    "impacts": answer_impacts,
    "tasks": answer_tasks,
}
STATES = ("done", "diverged", "pruned", "failed", "damaged", "stale", "running", "planned")
PUBLISHED = "official"  # the folder that `study.official` writes to, if it is not told another


def write_report(folder: StudyFolder) -> Path:
    """Writes report.html, answers.json, switch_weights.parquet and trials.parquet; returns the page's path.

    Works on any part of a study. `answers.json` depends on the records alone: same records, same bytes.
    Raises `UserError` where there is no study.
    """
    records = load_study_records(folder)
    answers: dict[str, Answer] = {name: QUESTIONS[name](records) for name in records.study.analysis.questions}
    found = {name: answer.to_json() for name, answer in answers.items()}
    page = folder.report / "report.html"
    facts = {"schema": SCHEMA, "study": records.study.name, "questions": found}
    write_json(folder.report / "answers.json", facts)
    write_bytes(folder.report / "trials.parquet", _parquet(_plain_table(records.trials)))
    write_bytes(folder.report / "switch_weights.parquet", _parquet(records.weights, store_schema=False))
    write_bytes(page, render_page(records, answers).encode())
    return page


def render_page(records: StudyRecords, answers: Mapping[str, Answer]) -> str:
    """The whole page; everything it shows is inside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    trials, heads = records.trials.to_dict("records"), _choices_by_role(records)
    chosen = {name for row in heads for _, name in row["weights"]}
    environment.filters |= {"number": _show, "states": show_states}
    return environment.get_template("report.html.j2").render(
        records=records, study=records.study, answers=answers, trials=trials,
        headlines=[name for name, measure in MEASURES.items() if measure.headline], measures=MEASURES,
        plotly_js=get_plotlyjs(),
        evidence={name: [_embed(figure) for figure in draw_evidence(name, records, answer)]
                  for name, answer in answers.items()},
        published=[_embed(figure) for figure in _draw_published(records.folder)],
        cells=_coverage(records), heads=heads, normalizers=[name for name in NORMALIZERS if name in chosen],
        states=[state for state in STATES if state in set(records.trials["state"])],
        troubles=[row for row in trials if row["state"] not in ("done", "planned", "running")],
        made_on=Counter(zip(records.done["device"], records.done["commit"], strict=True)),
    )  # fmt: skip


def draw_evidence(name: str, records: StudyRecords, answer: Answer) -> Iterator[go.Figure]:
    """The figures of one question, the most direct first; none that would be empty."""
    draw = {"useful": _draw_useful, "impacts": _draw_impacts, "tasks": _draw_tasks}[name]
    yield from draw(records, [item for item in answer.effects if item.estimate.value is not None])


def _draw_useful(records: StudyRecords, effects: list[Effect]) -> Iterator[go.Figure]:
    norms, analysis = records.levels("norm"), records.study.analysis
    planned = records.comparable(records.plain, "norm", "batch_size")
    done = planned[planned["state"].eq("done")]
    starts = ", and between how its networks start" * ("start_rule" in records.study.factors)
    if effects:
        yield figures.forest(
            effects, 0.0, f"Differences between the switch norm and each other norm{starts}",
            f"Paired. Bars: {analysis.confidence * 100:g} % intervals over replicates (grey points).",
        )  # fmt: skip
    if len(done):
        yield figures.metric_by_norm(done, norms, records.study.metric)
    if records.curves["key"].isin(done["key"]).any():
        yield figures.learning_curves(records.curves, done, norms, records.study.metric.replace("test", "val"))


def _draw_impacts(records: StudyRecords, effects: list[Effect]) -> Iterator[go.Figure]:
    confidence = records.study.analysis.confidence
    chosen = _finished_choices(records, "depth", "batch_size")
    switch = records.switch[records.switch["key"].isin(chosen["key"])]
    yield from _draw_ratios(effects, confidence)
    if len(switch):
        yield figures.share_by_batch(switch, chosen, confidence)
        yield from (figures.weight_maps(records.profiles, chosen, statistic) for statistic in STATISTICS)
        yield figures.share_by_epoch(records.switch_epochs, chosen)


def _draw_tasks(records: StudyRecords, effects: list[Effect]) -> Iterator[go.Figure]:
    yield from _draw_ratios(effects, records.study.analysis.confidence)
    chosen = name_settings(_finished_choices(records, *APART, *task_factors(records.study), "batch_size"))
    if chosen["key"].isin(list(records.profiles)).any():
        yield from (figures.weight_maps(records.profiles, chosen, statistic, TOGETHER) for statistic in STATISTICS)


def _draw_published(folder: StudyFolder) -> Iterator[go.Figure]:
    """What the networks chose that the authors of the SN papers published, where they lie beside the study."""
    beside = StudyFolder(folder.path.parent / PUBLISHED)
    if folder.path.name == PUBLISHED or not beside.config.exists():
        return
    records = load_study_records(beside)
    chosen = _finished_choices(records, "depth", "batch_size")
    for statistic in STATISTICS if chosen["key"].isin(list(records.profiles)).any() else ():
        figure = figures.weight_maps(records.profiles, chosen, statistic)
        figure.layout.title.text = f"What the papers' own networks chose: {figures.WORDS[statistic]}"
        figure.layout.title.subtitle.text = f"Read from the files that their authors published ({beside.path})."
        yield figure


def _draw_ratios(effects: list[Effect], confidence: float) -> Iterator[go.Figure]:
    if ratios := [item for item in effects if item.measure.startswith("effect")]:
        yield figures.forest(
            ratios, 1.0, "How far each factor moves the choice, over how far seeds do",
            f"At 1, no further than seeds. Bars: {confidence * 100:g} % intervals over replicates.", log=True,
        )  # fmt: skip


def _finished_choices(records: StudyRecords, *axes: str) -> pd.DataFrame:
    """The finished trials of the reference norm that a figure over these axes may average."""
    trials = records.plain[records.plain["norm"].eq(records.reference_norm or "")]
    comparable = records.comparable(trials, *axes)
    finished: pd.DataFrame = comparable[comparable["state"].eq("done")]
    return finished


def _choices_by_role(records: StudyRecords) -> list[dict[str, Any]]:
    """What heads chose, beside their backbones: a row a setting and role, with means over layers and finished runs."""
    if records.heads.empty:
        return []
    trials = name_settings(_finished_choices(records, *APART, *task_factors(records.study)))
    weights = pd.concat([records.switch, records.heads]).merge(trials[["key", TOGETHER]], on="key")
    with_heads = weights[weights["role"].ne(BACKBONE)][TOGETHER].unique()
    groups = weights[weights[TOGETHER].isin(with_heads)].groupby([TOGETHER, "role"], sort=False)
    return [
        {"task": task, "role": role, "runs": group["key"].nunique(),
         "weights": group.groupby(["statistic", "normalizer"])["weight"].mean().to_dict()}
        for (task, role), group in groups
    ]  # fmt: skip


def _embed(figure: go.Figure) -> dict[str, str]:
    """A figure as HTML, with its title apart: text of the page wraps on a phone."""
    title, subtitle = figure.layout.title.text, figure.layout.title.subtitle.text
    figure.layout.title = None
    div_id = "figure-" + "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    html = plotly.io.to_html(figure, config, include_plotlyjs=False, full_html=False, div_id=div_id)
    return {"title": title, "subtitle": subtitle, "html": html}


def _coverage(records: StudyRecords) -> list[tuple[list[str], Counter[str]]]:
    """Every cell with its replicates counted by state."""
    cells: dict[tuple[str, ...], Counter[str]] = {}
    for row in records.trials.to_dict("records"):
        levels = tuple(str(row[factor]) for factor in records.study.factors)
        cells.setdefault(levels, Counter())[row["state"]] += 1
    return [(list(levels), states) for levels, states in cells.items()]


def _plain_table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.infer_objects(), preserve_index=False)


def _parquet(table: pa.Table, store_schema: bool = True) -> bytes:
    """A table as a file. Without Arrow's own schema in it, coded text is read back as text."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=store_schema)
    return sink.getvalue()


def _show(value: Any, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else show_number(float(value), digits).replace("-", "−")
