"""The report's page: records, answers and figures in, one HTML file out. What it looks like is in `templates`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import StudyRecords
from study.analysis.report.tables import STATES, count_states
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import Measure
from study.analysis.wording import format_number, split_sentences
from study.plan.warm_start import build_config

Figures = Sequence[go.Figure]


def render_page(
    records: StudyRecords,
    answers: Mapping[str, Answer],
    evidence: Mapping[str, Figures],
    published: Figures = (),
    heads: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page; everything it shows is inside it.

    evidence: the figures of each question. A figure that leads to its trials holds `layout.meta = {"trials": groups}`,
    lists of row numbers of the trial table, and every point's `customdata` starts with the number of its group, or -1;
    `layout.meta["alt"]` describes it to those who do not see it.
    published: figures that belong to no question. heads: what heads chose, a row a setting and role.
    """
    trials = _trials(records)
    chosen = {name for row in heads for _, name in row["weights"]}
    occurring = {effect.measure.name for answer in answers.values() for effect in answer.effects}
    return load_templates().get_template("report.html.j2").render(
        records=records, study=records.study, answers=answers, trials=trials, plotly_js=get_plotlyjs(),
        headlines={
            name: [effect for effect in answer.effects if effect.measure.headline]
            for name, answer in answers.items()
        },
        evidence={name: embed_all(figures, name) for name, figures in evidence.items()},
        published=embed_all(published, "published"),
        cells=count_states(records.trials, list(records.study.factors)), heads=heads,
        normalizers=[name for name in records.space.member_names if name in chosen],
        measures={name: measure for name, measure in records.measures.items() if name in occurring},
        states={state: rows for state in STATES if (rows := _rows(records.trials, state))},
        troubles=[row for row in trials if row["state"] not in ("done", "planned", "running")],
        made_on=Counter(zip(records.done["device"], records.done["commit"], strict=True)),
    )  # fmt: skip


def load_templates() -> jinja2.Environment:
    """The templates, with what they show numbers, intervals and row numbers by."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": _number, "p_value": _p_value, "ranges": show_ranges, "sentences": split_sentences,
        "typeset": _typeset, "by_measure": _by_measure, "place": place_interval,
    }  # fmt: skip
    return environment


def show_ranges(rows: Iterable[int]) -> str:
    """Row numbers as the page's links hold them: `0-3,8`."""
    runs = [[row for _, row in run] for _, run in groupby(enumerate(sorted(set(rows))), lambda item: item[1] - item[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def embed_all(figures: Figures, name: str) -> list[dict[str, Any]]:
    """`embed`, of the figures of one part of the page."""
    return [embed(figure, name, number) for number, figure in enumerate(figures, 1)]


def embed(figure: go.Figure, name: str, number: int) -> dict[str, Any]:
    """A figure for the page: its specification as JSON, with its title apart: text of the page wraps on a phone."""
    title, meta = figure.layout.title, figure.layout.meta or {}
    spec = json.loads(figure.to_json())
    spec["layout"].pop("title", None)
    if groups := meta.get("trials"):
        spec["layout"]["meta"]["trials"] = [show_ranges(rows) for rows in groups]
    return {
        "id": f"figure-{name}-{number}", "title": title.text, "subtitle": title.subtitle.text,
        "alt": meta.get("alt"), "leads": bool(groups or figure.layout.sliders), "height": figure.layout.height or 450,
        "spec": Markup(json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")),  # noqa: S704  (ends no script)
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an interval is drawn, in percent of a scale that a table's rows share. None where there is nothing."""

    line: float | None
    value: float | None
    low: float | None
    high: float | None
    clear: bool  # of the line


def place_interval(estimate: Estimate, beside: Iterable[Estimate], measure: Measure) -> Place:
    """The place of an estimate among those beside it; ratios, whose line is not 0, on a logarithmic scale."""

    def scaled(value: float | None) -> float | None:
        if value is None or measure.line == 0:
            return value
        return math.log(value) if value > 0 else None

    bounds = [measure.line, *(end for item in beside for end in (item.value, item.low, item.high))]
    ends = [end for bound in bounds if (end := scaled(bound)) is not None]
    first, width = min(ends), max(ends) - min(ends) or 1.0

    def at(value: float | None) -> float | None:
        end = scaled(value)
        return None if end is None else round(4 + 92 * (end - first) / width, 1)

    return Place(
        line=at(measure.line), value=at(estimate.value), low=at(estimate.low), high=at(estimate.high),
        clear=estimate.above(measure.line) or estimate.below(measure.line),
    )  # fmt: skip


def _trials(records: StudyRecords) -> list[dict[str, Any]]:
    """The rows of the trial table, each with its number and its config where that differs from the study's base."""
    base = records.study.base.model_dump(mode="json")
    configs: dict[str, dict[str, Any]] = {}  # replicates share one
    rows = [{str(name): value for name, value in row.items()} for row in records.trials.to_dict("records")]
    for number, row in enumerate(rows):
        levels = {factor: row[factor] for factor in records.study.factors}
        if row["trial_id"] not in configs:
            configs[row["trial_id"]] = _config(records, levels) if row["replicate"] is not None else {}
        config = configs[row["trial_id"]]
        row["number"], row["url"] = number, _web_address(row.get("wandb"))
        row["config"] = {name: value for name, value in config.items() if value != base[name]}
    return rows


def _config(records: StudyRecords, levels: dict[str, Any]) -> dict[str, Any]:
    try:
        return build_config(records.study, levels).model_dump(mode="json")
    except ValueError:  # levels of a trial that cannot be read
        return {}


def _web_address(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) else None


def _rows(trials: pd.DataFrame, state: str) -> list[int]:
    return [int(row) for row in trials.index[trials["state"].eq(state)]]


def _by_measure(effects: Sequence[Effect]) -> list[tuple[str, Measure, list[Effect]]]:
    """Effects in groups of one measure each, in their order."""
    measures = dict.fromkeys(effect.measure for effect in effects)
    return [(each.name, each, [effect for effect in effects if effect.measure == each]) for each in measures]


def _number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else format_number(float(value), digits, sign).replace("-", "−")


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def _typeset(text: str) -> str:
    """Signs and spaces as print has them: `-0.1` with a minus, `a - b` with a dash, `n = 4` and `95 %` in one line."""
    text = text.replace(" - ", " – ")
    text = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)
    return re.sub(r" (?=%)|(?<=\b[nB]) (?== )|(?<=\b[nB] =) ", "\u00a0", text)
