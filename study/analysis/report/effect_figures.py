"""Figures of effects with their intervals: forests, and factors ranked by their displacement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from study.analysis.questions.answers import Effect
from study.analysis.report.figure_texts import format_effect, format_effects
from study.analysis.report.plot_style import (
    ACCENT,
    FAINT,
    GREY,
    SYMBOLS,
    TrialGroups,
    build_error_bars,
    build_panels,
    finish_figure,
)
from study.analysis.statistics.measures import Measure

ZERO = {"color": GREY, "width": 1}
DOTTED = {"color": GREY, "dash": "dot", "width": 1.5}


@dataclass(frozen=True, kw_only=True)
class RankingColumn:
    """A column of panels of the ranking: displacements in one unit.

    title: the distance. measures: by the kind of weights, the name of the measure. margin: in the column's unit.
    references: names of measures that are shown below the factors for comparison.
    """

    title: str
    measures: Mapping[str, str]
    margin: float
    references: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of the ranking: factors, the furthest first, then what they are compared with."""

    names: list[str]
    n_factors: int
    groups: TrialGroups = field(default_factory=TrialGroups)


def draw_forest(
    effects: Sequence[Effect], title: str, subtitle: str, *, compared: bool = True, lines: Mapping[str, float] = {}
) -> go.Figure:
    """Effects with intervals, one panel per measure; small points are replicates.

    compared: whether 0 means "no difference", which a line then shows. lines: by the name of a measure, the place of a
    dotted line, which the subtitle explains.
    """
    by_measure: dict[Measure, list[Effect]] = {}
    for effect in effects:
        by_measure.setdefault(effect.measure, []).append(effect)
    figure = build_panels([14 + 28 * len(rows) for rows in by_measure.values()], 1, gap=62, shared_xaxes=False)
    groups = TrialGroups()
    for number, (measure, rows) in enumerate(by_measure.items(), start=1):
        place = {"row": number, "col": 1}
        _add_forest_panel(figure, groups, measure, rows, place, compared=compared)
        if compared:
            figure.add_vline(x=0, line=ZERO, **place)
        if measure.name in lines:
            figure.add_vline(x=lines[measure.name], line=DOTTED, **place)
    figure.update_xaxes(zeroline=False)
    figure.update_layout(showlegend=False)
    filled = " A filled diamond: the interval excludes 0." * compared
    return finish_figure(
        figure, groups, title=title, subtitle=f"{subtitle}{filled}", alt=format_effects(effects), below=50
    )


def draw_factor_ranking(
    effects: Sequence[Effect], columns: Sequence[RankingColumn], title: str, subtitle: str
) -> go.Figure:
    """Factors by their displacement, the furthest first: a column of panels a distance, a symbol a kind of weights.

    Columns without any effect are left out.
    """
    by_measure = {
        measure: [effect for effect in effects if effect.measure.name == measure]
        for column in columns for measure in (*column.measures.values(), *column.references)
    }  # fmt: skip
    columns = [column for column in columns if any(by_measure[each] for each in column.measures.values())]
    factors, references = (
        list(dict.fromkeys(effect.comparison for measure in names for effect in by_measure[measure]))
        for names in (
            [each for column in columns for each in column.measures.values()],
            [each for column in columns for each in column.references],
        )
    )
    rows = _Rows(names=[*factors, *references], n_factors=len(factors))
    widths = [2, *[1] * (len(columns) - 1)]
    figure = build_panels(
        [24 + 42 * len(rows.names)], len(columns), column_titles=[column.title for column in columns],
        column_widths=[width / sum(widths) for width in widths],
    )  # fmt: skip
    for number, column in enumerate(columns, start=1):
        _add_ranking_column(figure, rows, column, by_measure, number)
    figure.update_xaxes(zeroline=False, title_text="displacement", rangemode="tozero")
    figure.update_xaxes(nticks=4).update_xaxes(nticks=8, col=1)
    figure.update_yaxes(range=[len(rows.names) - 0.5, -0.5], tickvals=list(range(len(rows.names))), ticktext=rows.names,
                        zeroline=False, showgrid=False)  # fmt: skip
    filled = "The dotted line is the margin; a filled symbol: the interval lies above it."
    return finish_figure(
        figure, rows.groups, title=title, subtitle=f"{subtitle} {filled}", alt=format_effects(effects)
    )  # fmt: skip


def _add_ranking_column(
    figure: go.Figure, rows: _Rows, column: RankingColumn, by_measure: Mapping[str, Sequence[Effect]], number: int
) -> None:
    for rank, (kind, measure) in enumerate(column.measures.items()):
        shift = 0.22 * (rank - (len(column.measures) - 1) / 2)
        style = (kind, GREY if rank else ACCENT, SYMBOLS[rank])
        _add_ranked_effects(figure, rows, by_measure[measure], style, column.margin, shift=shift, col=number)
    for measure in filter(by_measure.get, column.references):
        style = ("for comparison, all weights", GREY, "circle")
        _add_ranked_effects(figure, rows, by_measure[measure], style, None, shift=0, col=number)
    figure.add_vline(x=0, line=ZERO, row=1, col=number)
    figure.add_vline(x=column.margin, line=DOTTED, row=1, col=number)
    if rows.n_factors < len(rows.names):
        figure.add_hline(y=rows.n_factors - 0.5, line={"color": FAINT, "width": 1}, row=1, col=number)


def _add_ranked_effects(
    figure: go.Figure, rows: _Rows, effects: Sequence[Effect], style: tuple[str, str, str], margin: float | None, *,
    shift: float, col: int,
) -> None:  # fmt: skip
    """Adds the effects of one measure to a panel of the ranking. style: name, colour, symbol.

    margin: that an interval has to exceed for a filled symbol; None: always filled.
    """
    kind, colour, symbol = style
    symbols = [symbol + "-open" * (margin is not None and not effect.estimate.above(margin)) for effect in effects]
    figure.add_scatter(
        x=_round(effect.estimate.value for effect in effects), mode="markers", name=kind, legendgroup=kind,
        y=[round(rows.names.index(effect.comparison) + shift, 4) for effect in effects],
        error_x=build_error_bars(effect.estimate for effect in effects), row=1, col=col,
        marker=_build_marker(colour, symbols),
        customdata=[[rows.groups.number(effect.trials), effect.comparison, format_effect(effect)]
                    for effect in effects],
        hovertemplate="%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
    )  # fmt: skip


def _add_forest_panel(
    figure: go.Figure, groups: TrialGroups, measure: Measure, effects: Sequence[Effect], place: dict[str, int], *,
    compared: bool,
) -> None:  # fmt: skip
    for effect in effects:
        figure.add_scatter(
            x=_round(effect.per_replicate), y=[effect.comparison] * len(effect.per_replicate), **place,
            mode="markers", marker={"color": GREY, "size": 5},
            customdata=[[groups.number(effect.trials)]] * len(effect.per_replicate),
            hovertemplate="%{y}, a replicate: %{x:.4f}<extra></extra>",
        )  # fmt: skip
    symbols = ["diamond" if not compared or effect.estimate.excludes(0) else "diamond-open" for effect in effects]
    figure.add_scatter(
        x=_round(effect.estimate.value for effect in effects), y=[effect.comparison for effect in effects],
        mode="markers", error_x=build_error_bars(effect.estimate for effect in effects), **place,
        marker=_build_marker(ACCENT, symbols),
        customdata=[[groups.number(effect.trials), format_effect(effect)] for effect in effects],
        hovertemplate="%{y}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(range=[len(effects) - 0.4, -0.6], **place)
    figure.update_xaxes(title_text=measure.label, nticks=6, **place)


def _build_marker(colour: str, symbols: Sequence[str]) -> dict[str, Any]:
    return {"color": colour, "size": 10, "symbol": symbols, "line": {"width": 2, "color": colour}}


def _round(values: Iterable[float | None]) -> list[float | None]:
    """Values with six digits: more would make the page larger, but not the figure more precise."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
