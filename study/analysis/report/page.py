"""Renders the report's page, one HTML file, from records, answers and figures. Its texts are in `templates`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.robustness import format_agreement, format_fragile
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.report.plan_text import format_plan
from study.analysis.report.tables import REPORT_STATES, count_states
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import Measure
from study.analysis.wording import format_bounds, format_number, format_slug, format_verdict, split_sentences
from study.config.choice_space import ChoiceSpace
from study.config.wording import format_count, format_plural
from study.plan.warm_start import build_config

Figures = Sequence[go.Figure]
FACTOR_MEASURES = ("effect", "seed_distance", "effect_relative", "effect_place")  # of the table of factors


def render_page(
    records: StudyRecords,
    answers: Mapping[str, Answer],
    figures: Mapping[str, Figures],
    published: Figures = (),
    heads: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole page, which loads nothing from elsewhere.

    figures: by question. `layout.meta["trials"]` of a figure holds the groups of trials that its points link to, as
    lists of row numbers of the trial table; every point's `customdata` starts with the number of its group, or -1.
    `layout.meta["alt"]` describes the figure for screen readers.
    published: figures that belong to no question. heads: what heads chose, one row per setting and role.
    """
    trials = _build_trial_rows(records)
    occurring = {effect.measure.name for answer in answers.values() for effect in answer.effects}
    return load_templates().get_template("report.html.j2").render(
        records=records, study=records.study, answers=answers, trials=trials, plotly_js=get_plotlyjs(),
        plan=format_plan(records),
        headlines={
            name: [effect for effect in answer.effects if effect.measure.headline
                   and not (answer.factors and effect.measure.name in FACTOR_MEASURES)]
            for name, answer in answers.items()
        },
        factors={name: build_factor_rows(answer) for name, answer in answers.items()}, margin=records.margin("effect"),
        figures={name: group_figures(embed_figures(drawn, name)) for name, drawn in figures.items()},
        published=embed_figures(published, "published"),
        cells=count_states(records.trials, list(records.study.factors)),
        heads=heads, head_weights=_list_head_weights(records.space, heads),
        measures={name: measure for name, measure in records.measures.items() if name in occurring},
        states={state: rows for state in REPORT_STATES if (rows := _find_rows(records.trials, state))},
        troubles=[row for row in trials if row["state"] not in ("done", "planned", "running")],
        made_on=Counter(zip(records.done["device"], records.done["commit"], strict=True)),
    )  # fmt: skip


def load_templates() -> jinja2.Environment:
    """The environment of the templates, with the filters that format numbers, intervals and row numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "plural": format_plural,
        "count": format_count,
        "number": _format_number, "p_value": _format_p_value, "ranges": format_ranges, "sentences": split_sentences,
        "typeset": _typeset, "by_measure": _group_by_measure, "place": place_interval, "zero": _place_zero_of_effects,
        "verdict": format_verdict, "agreement": format_agreement, "fragile": format_fragile,
        "slug": partial(format_slug, most=60), "bounds": format_bounds,
    }  # fmt: skip
    return environment


def format_ranges(rows: Iterable[int]) -> str:
    """Row numbers as the page's links hold them: `0-3,8` for 0, 1, 2, 3 and 8."""
    runs = [[row for _, row in run] for _, run in groupby(enumerate(sorted(set(rows))), lambda item: item[1] - item[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def embed_figures(figures: Figures, name: str) -> list[dict[str, Any]]:
    """`embed_figure` for all figures of one part of the page."""
    return [embed_figure(figure, name, number) for number, figure in enumerate(figures, 1)]


def embed_figure(figure: go.Figure, name: str, number: int) -> dict[str, Any]:
    """A figure for the page: its specification as JSON, and its title separately, as text that wraps on a phone."""
    title, meta = figure.layout.title, figure.layout.meta or {}
    spec = json.loads(figure.to_json())
    spec["layout"].pop("title", None)
    if groups := meta.get("trials"):
        spec["layout"]["meta"]["trials"] = [format_ranges(rows) for rows in groups]
    return {
        "id": f"figure-{name}-{number}", "title": title.text, "subtitle": title.subtitle.text,
        "group": meta.get("group"),
        "alt": meta.get("alt"), "interactive": bool(groups or figure.layout.sliders),
        "height": figure.layout.height or 450,
        "spec": Markup(json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")),  # noqa: S704  (without "<" it cannot end the script)
    }  # fmt: skip


def group_figures(embedded: Sequence[dict[str, Any]]) -> list[tuple[str | None, list[dict[str, Any]]]]:
    """Consecutive figures that are split by the same factor, with its name; None for figures without one."""
    return [(name, list(members)) for name, members in groupby(embedded, lambda figure: figure["group"])]


@dataclass(frozen=True, kw_only=True)
class FactorRow:
    """A row of the table of factors.

    verdict: whether the factor moves the choice; None for what factors are compared with (seeds, places in a block).
    relative: the displacement in distances between seeds. between: that of all levels, where there are more than ends.
    widest: that of the two levels furthest apart, where there are more than two that are not numbers.
    """

    name: str
    verdict: Verdict | None
    effect: Effect
    relative: Effect | None
    between: Effect | None = None
    widest: Effect | None = None

    @property
    def is_reference(self) -> bool:
        return self.verdict is None


def build_factor_rows(answer: Answer) -> list[FactorRow]:
    """The factors that an answer has a verdict on, the furthest first, then what they are compared with."""
    by_name = {(effect.measure.name, effect.comparison): effect for effect in answer.effects}
    widest = {name.partition(":")[0]: effect for (measure, name), effect in by_name.items()
              if measure == "effect_widest_pair"}  # fmt: skip
    rows = [
        FactorRow(name=effect.comparison, verdict=answer.factors[effect.comparison], effect=effect,
                  relative=by_name.get(("effect_relative", effect.comparison)),
                  between=by_name.get(("effect_all_levels", effect.comparison)), widest=widest.get(effect.comparison))
        for effect in answer.effects if effect.measure.name == "effect" and effect.comparison in answer.factors
    ]  # fmt: skip
    compared = [effect for effect in answer.effects if effect.measure.name in ("effect_place", "seed_distance")]
    references = [FactorRow(name=each.comparison, verdict=None, effect=each, relative=None) for each in compared]
    return [*rows, *references] if rows else []


@dataclass(frozen=True, kw_only=True)
class IntervalPlace:
    """Where an interval is drawn, in percent of the scale that the rows of a table share; None for missing values."""

    line: float
    value: float | None
    low: float | None
    high: float | None
    clear: bool  # whether the interval excludes the line


def place_interval(
    estimate: Estimate, beside: Iterable[Estimate], line: float = 0.0, zero: float | None = None
) -> IntervalPlace:
    """The place of an estimate and of a line on the scale of the estimates beside it.

    zero: where 0 lies, as a share of the scale's width; None for the place that leaves no room unused.
    """
    left, right = _find_reach(beside, line)
    zero = left / (left + right) if zero is None else zero
    unit = min(zero / left if left else 1 / right, (1 - zero) / right if right else 1 / left)

    def at(value: float) -> float:
        return round(4 + 92 * (zero + value * unit), 1)

    value, low, high = (None if end is None else at(end) for end in (estimate.value, estimate.low, estimate.high))
    return IntervalPlace(line=at(line), value=value, low=low, high=high, clear=estimate.excludes(line))


def place_zero(groups: Iterable[Iterable[Estimate]]) -> float:
    """Where 0 lies in all rows of a table, as a share of the width. Its groups of rows have scales of their own."""
    reaches = [_find_reach(group) for group in groups]
    return sum(left / (left + right) for left, right in reaches) / len(reaches) if reaches else 0.0


def _find_reach(estimates: Iterable[Estimate], line: float = 0.0) -> tuple[float, float]:
    """How far estimates, their intervals and a line reach to the left and to the right of 0; not both are 0."""
    bounds = [0.0, line, *(end for item in estimates for end in (item.value, item.low, item.high) if end is not None)]
    left, right = -min(bounds), max(bounds)
    return (left, right) if left or right else (0.0, 1.0)


def _place_zero_of_effects(effects: Sequence[Effect]) -> float:
    return place_zero([effect.estimate for effect in group] for _, _, group in _group_by_measure(effects))


def _build_trial_rows(records: StudyRecords) -> list[dict[str, Any]]:
    """The rows of the trial table, each with its number, its W&B address, and how its config differs from the base."""
    base = records.study.base.model_dump(mode="json")
    configs: dict[str, dict[str, Any]] = {}  # replicates share one
    rows = [{str(name): value for name, value in row.items()} for row in records.trials.to_dict("records")]
    for number, row in enumerate(rows):
        levels = {factor: row[factor] for factor in records.study.factors}
        if row["trial_id"] not in configs:
            configs[row["trial_id"]] = _build_trial_config(records, levels) if row["replicate"] is not None else {}
        config = configs[row["trial_id"]]
        row["number"], row["url"] = number, _check_web_address(row.get("wandb"))
        row["config"] = {name: value for name, value in config.items() if value != base[name]}
    return rows


def _build_trial_config(records: StudyRecords, levels: dict[str, Any]) -> dict[str, Any]:
    try:
        return build_config(records.study, levels).model_dump(mode="json")
    except ValueError:  # a damaged trial has no valid levels
        return {}


def _check_web_address(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) else None


def _list_head_weights(space: ChoiceSpace, heads: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """The (axis, member) that heads have weights of, with a label each: the columns of their table."""
    members = {member for row in heads for _, member in row["weights"]}
    return {(axis.name, name): f"{axis.label}: {name}" for axis in space.axes
            for name in space.member_names if name in members}  # fmt: skip


def _find_rows(trials: pd.DataFrame, state: str) -> list[int]:
    return [int(row) for row in trials.index[trials["state"].eq(state)]]


def _group_by_measure(effects: Sequence[Effect]) -> list[tuple[str, Measure, list[Effect]]]:
    """Name, measure and effects of each measure, in order of appearance."""
    measures = dict.fromkeys(effect.measure for effect in effects)
    return [(each.name, each, [effect for effect in effects if effect.measure == each]) for each in measures]


def _format_number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number for a table; a dash for a missing one."""
    return "–" if value is None or pd.isna(value) else format_number(float(value), digits, sign).replace("-", "−")


def _format_p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _format_number(value)


def _typeset(text: str) -> str:
    """Text with typographic signs: `-0.1` with a minus, `a - b` with a dash, `n = 4` and `95 %` without line breaks."""
    text = text.replace(" - ", " – ")
    text = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)
    return re.sub(r" (?=%)|(?<=\b[nB]) (?== )|(?<=\b[nB] =) ", "\u00a0", text)
