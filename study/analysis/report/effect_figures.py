"""Figures of effects with their intervals: forests, and factors ranked by their effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from study.analysis.questions.answers import Effect
from study.analysis.report.figure_texts import format_effect, format_effects
from study.analysis.report.plot_style import (
    ACCENT,
    GREY,
    SYMBOLS,
    TrialGroups,
    build_error_bars,
    build_panels,
    finish_figure,
)
from study.analysis.statistics.measures import Measure

_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50)
LOG_TICKS = {"tickvals": _TICKS, "ticktext": [f"{tick:g}" for tick in _TICKS]}
LINE = {"color": GREY, "dash": "dot"}


def draw_forest(effects: Sequence[Effect], title: str, subtitle: str, *, compared: bool = True) -> go.Figure:
    """Effects with intervals, one panel per measure; small points are replicates. Ratios are on a logarithmic scale.

    compared: whether the measures have a value that means "no difference", which a dotted line then shows.
    """
    by_measure: dict[Measure, list[Effect]] = {}
    for effect in effects:
        by_measure.setdefault(effect.measure, []).append(effect)
    figure = build_panels([14 + 28 * len(rows) for rows in by_measure.values()], 1, gap=62, shared_xaxes=False)
    groups = TrialGroups()
    for number, (measure, rows) in enumerate(by_measure.items(), start=1):
        _add_forest_panel(figure, groups, measure, rows, {"row": number, "col": 1}, compared=compared)
    figure.update_xaxes(zeroline=False)
    if all(measure.line == 1 for measure in by_measure):
        _share_log_scale(figure)
    figure.update_layout(showlegend=False)
    filled = " A filled diamond: the interval excludes the dotted line, which marks no difference." * compared
    return finish_figure(
        figure, groups, title=title, subtitle=f"{subtitle}{filled}", alt=format_effects(effects), below=50
    )


def draw_factor_ranking(
    effects: Sequence[Effect], columns: Mapping[str, Mapping[str, str]], title: str, subtitle: str
) -> go.Figure:
    """Factors by their effect, the strongest first: a column of panels a distance, a symbol a kind of weights.

    columns: by the name of a distance, the measure of each kind of weights. Measures without an effect are left out.
    """
    by_measure = {
        measure: [effect for effect in effects if effect.measure.name == measure]
        for kinds in columns.values() for measure in kinds.values()
    }  # fmt: skip
    columns = {name: kinds for name, kinds in columns.items() if any(by_measure[each] for each in kinds.values())}
    factors = list(dict.fromkeys(
        effect.comparison for kinds in columns.values() for measure in kinds.values() for effect in by_measure[measure]
    ))  # fmt: skip
    figure, groups = build_panels([20 + 54 * len(factors)], len(columns), column_titles=list(columns)), TrialGroups()
    for col, kinds in enumerate(columns.values(), start=1):
        for rank, (kind, measure) in enumerate(kinds.items()):
            shift = 0.22 * (rank - (len(kinds) - 1) / 2)
            places = [factors.index(effect.comparison) + shift for effect in by_measure[measure]]
            _add_ranked_effects(figure, groups, by_measure[measure], places, kind=kind, rank=rank, col=col)
        figure.add_vline(x=1, line=LINE, row=1, col=col)
    figure.update_xaxes(type="log", zeroline=False, title_text="effect", **LOG_TICKS)
    figure.update_yaxes(range=[len(factors) - 0.5, -0.5], tickvals=list(range(len(factors))), ticktext=factors,
                        zeroline=False)  # fmt: skip
    subtitle = f"{subtitle} A filled symbol: the interval excludes 1."
    return finish_figure(figure, groups, title=title, subtitle=subtitle, alt=format_effects(effects))


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
    symbols = ["diamond" if not compared or effect.estimate.excludes(measure.line) else "diamond-open"
               for effect in effects]  # fmt: skip
    figure.add_scatter(
        x=_round(effect.estimate.value for effect in effects), y=[effect.comparison for effect in effects],
        mode="markers", error_x=build_error_bars(effect.estimate for effect in effects), **place,
        marker=_build_marker(ACCENT, symbols),
        customdata=[[groups.number(effect.trials), format_effect(effect)] for effect in effects],
        hovertemplate="%{y}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    if compared:
        figure.add_vline(x=measure.line, line=LINE, **place)
    figure.update_yaxes(range=[len(effects) - 0.4, -0.6], **place)
    figure.update_xaxes(title_text=measure.label, nticks=6, **place)


def _share_log_scale(figure: go.Figure) -> None:
    figure.update_xaxes(type="log", **LOG_TICKS)
    for axis in list(figure.select_xaxes())[1:]:
        axis.matches = "x"  # the first


def _add_ranked_effects(
    figure: go.Figure, groups: TrialGroups, effects: Sequence[Effect], places: Sequence[float], *, kind: str, rank: int,
    col: int,
) -> None:  # fmt: skip
    """Adds the effects of one measure to a panel of the ranking, at these places of the y axis."""
    symbols = [SYMBOLS[rank] + ("" if effect.estimate.excludes(1) else "-open") for effect in effects]
    figure.add_scatter(
        x=_round(effect.estimate.value for effect in effects), mode="markers", name=kind, legendgroup=kind,
        y=places, error_x=build_error_bars(effect.estimate for effect in effects), row=1, col=col,
        marker=_build_marker(GREY if rank else ACCENT, symbols),
        customdata=[[groups.number(effect.trials), effect.comparison, format_effect(effect)] for effect in effects],
        hovertemplate="%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
    )  # fmt: skip


def _build_marker(colour: str, symbols: Sequence[str]) -> dict[str, Any]:
    return {"color": colour, "size": 10, "symbol": symbols, "line": {"width": 2, "color": colour}}


def _round(values: Iterable[float | None]) -> list[float | None]:
    """Values with six digits: more would make the page larger, but not the figure more precise."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
