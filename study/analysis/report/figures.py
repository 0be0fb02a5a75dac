"""Figures of results: effects with their intervals, and scores of norms. Frames in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from study.analysis.questions.answers import Effect
from study.analysis.report.plot_style import (
    COLOURS,
    GREY,
    SYMBOLS,
    TrialGroups,
    add_band,
    error_bars,
    finish,
    groups_of,
    panels,
    style,
)
from study.analysis.statistics.measures import build_measures
from study.analysis.wording import format_number, join_words

FILLED = "A filled diamond: the interval leaves out the dotted line, at which nothing differs."
_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50)
LOG_TICKS = {"tickvals": _TICKS, "ticktext": [f"{tick:g}" for tick in _TICKS]}


def forest(effects: Sequence[Effect], title: str, subtitle: str, *, compared: bool = True) -> go.Figure:
    """Effects with intervals, a panel a measure; small points are replicates. Ratios stand on a log scale.

    compared: whether there is a value at which nothing differs, and a line to show it.
    """
    measures = list(dict.fromkeys(effect.measure for effect in effects))
    rows = [[effect for effect in effects if effect.measure == measure] for measure in measures]
    figure = panels([14 + 28 * len(group) for group in rows], 1, gap=62, shared_xaxes=False)
    groups = TrialGroups()
    for number, group in enumerate(rows, start=1):
        line, place = measures[number - 1].line, {"row": number, "col": 1}
        for effect in group:
            figure.add_scatter(
                x=_rounded(effect.per_replicate), y=[effect.comparison] * len(effect.per_replicate), **place,
                mode="markers", marker={"color": GREY, "size": 5},
                customdata=[[groups.number(effect.trials)]] * len(effect.per_replicate),
                hovertemplate="%{y}, a replicate: %{x:.4f}<extra></extra>",
            )  # fmt: skip
        figure.add_scatter(
            x=_rounded(effect.estimate.value for effect in group), y=[effect.comparison for effect in group],
            mode="markers", error_x=error_bars(effect.estimate for effect in group), **place,
            marker={"color": COLOURS["sn"], "size": 10, "line": {"width": 2, "color": COLOURS["sn"]},
                    "symbol": ["diamond" if _leaves_out(effect, line) or not compared else "diamond-open"
                               for effect in group]},
            customdata=[[groups.number(effect.trials), describe_effect(effect)] for effect in group],
            hovertemplate="%{y}<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        if compared:
            figure.add_vline(x=line, line={"color": GREY, "dash": "dot"}, **place)
        figure.update_yaxes(range=[len(group) - 0.4, -0.6], **place)
        figure.update_xaxes(title_text=measures[number - 1].label, nticks=6, **place)
    figure.update_xaxes(zeroline=False)
    if all(measure.line == 1 for measure in measures):
        figure.update_xaxes(type="log", **LOG_TICKS)
        for axis in list(figure.select_xaxes())[1:]:  # the first is what they match
            axis.matches = "x"
    figure.update_layout(showlegend=False)
    subtitle = f"{subtitle} {FILLED}" if compared else subtitle
    return finish(figure, groups, title=title, subtitle=subtitle, alt=_say(effects), below=50)


def factor_ranking(
    effects: Sequence[Effect], columns: Mapping[str, Mapping[str, str]], title: str, subtitle: str
) -> go.Figure:
    """Factors by their effect, the strongest first: a column of panels a distance, a symbol a kind of weights.

    columns: by the name of a distance, the measure of each kind of weights. Measures without an effect are left out.
    """
    of_measure = {kind: [effect for effect in effects if effect.measure.name == kind]
                  for kinds in columns.values() for kind in kinds.values()}  # fmt: skip
    columns = {name: kinds for name, kinds in columns.items() if any(of_measure[kind] for kind in kinds.values())}
    factors = list(dict.fromkeys(effect.comparison for kinds in columns.values() for kind in kinds.values()
                                 for effect in of_measure[kind]))  # fmt: skip
    figure, groups = panels([20 + 54 * len(factors)], len(columns), column_titles=list(columns)), TrialGroups()
    for col, kinds in enumerate(columns.values(), start=1):
        for rank, (kind, measure) in enumerate(kinds.items()):
            found, colour = of_measure[measure], GREY if rank else COLOURS["sn"]
            marks = [SYMBOLS[rank] + ("" if _leaves_out(effect, 1) else "-open") for effect in found]
            figure.add_scatter(
                x=_rounded(effect.estimate.value for effect in found), mode="markers", name=kind, legendgroup=kind,
                y=[factors.index(effect.comparison) + 0.22 * (rank - (len(kinds) - 1) / 2) for effect in found],
                error_x=error_bars(effect.estimate for effect in found), row=1, col=col,
                marker={"color": colour, "size": 10, "symbol": marks, "line": {"width": 2, "color": colour}},
                customdata=[[groups.number(effect.trials), effect.comparison, describe_effect(effect)]
                            for effect in found],
                hovertemplate="%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            )  # fmt: skip
        figure.add_vline(x=1, line={"color": GREY, "dash": "dot"}, row=1, col=col)
    figure.update_xaxes(type="log", zeroline=False, title_text="effect", **LOG_TICKS)
    figure.update_yaxes(range=[len(factors) - 0.5, -0.5], tickvals=list(range(len(factors))), ticktext=factors,
                        zeroline=False)  # fmt: skip
    filled = "A filled symbol: the interval leaves out 1."
    return finish(figure, groups, title=title, subtitle=f"{subtitle} {filled}", alt=_say(effects))


def describe_effect(effect: Effect) -> str:
    """All that is known of an effect, a line each: for a hover text."""
    lines = [f"{effect.measure.label}: {format_number(effect.estimate.value or 0.0, 4)}"]
    if effect.estimate.low is not None and effect.estimate.high is not None:
        lines.append(f"interval {format_number(effect.estimate.low, 4)} to {format_number(effect.estimate.high, 4)}")
    if effect.bootstrap:
        lines.append(f"bootstrap {format_number(effect.bootstrap[0], 4)} to {format_number(effect.bootstrap[1], 4)}")
    if effect.probability is not None:
        lines.append(f"probability of a pair above the line: {format_number(effect.probability, 2)}")
    if effect.p_value is not None:
        lines.append(f"adjusted p {effect.p_value:.2g}")
    lines.append(f"{effect.estimate.n} replicates, {effect.n_pairs} of {effect.n_pairs_planned} pairs")
    return "<br>".join(lines)


def metric_by_norm(trials: pd.DataFrame, norms: Sequence[str], metric: str) -> go.Figure:
    """A metric by norm and B: a point a replicate, a bar the mean over replicates."""
    batches, label = sorted(trials["batch_size"].unique()), build_measures()[metric].label
    figure, groups, said = panels([310], 1), TrialGroups(), []
    for position, norm in enumerate(norms):
        shift = min(0.18, 0.8 / len(norms)) * (position - (len(norms) - 1) / 2)
        runs = trials[trials["norm"].eq(norm) & trials[metric].notna()]
        points = runs.groupby(["batch_size", "replicate"])[metric].mean()
        means = points.groupby(level=0).mean()
        looks = style(norm, norms)
        figure.add_scatter(
            x=[round(batches.index(batch) + shift, 4) for batch, _ in points.index], y=_rounded(points),
            mode="markers", opacity=0.75, **looks,
            customdata=[
                [groups.number(part.index), norm, int(batch), int(replicate), len(part)]
                for (batch, replicate), part in groups_of(runs, "batch_size", "replicate")
            ],
            hovertemplate="%{customdata[1]}, B = %{customdata[2]}, replicate %{customdata[3]}: %{y:.4f}"
            "<br>mean of %{customdata[4]} trials<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[round(batches.index(batch) + shift, 4) for batch in means.index], y=_rounded(means), mode="markers",
            showlegend=False, legendgroup=norm,
            marker={"symbol": "line-ew", "size": 12, "line": {"width": 2.5, "color": looks["line"]["color"]}},
            customdata=[
                [groups.number(part.index), norm, int(batch), part["replicate"].nunique()]
                for batch, part in groups_of(runs, "batch_size")
            ],
            hovertemplate="%{customdata[1]}, B = %{customdata[2]}: mean %{y:.4f} of %{customdata[3]} replicates"
            "<extra></extra>",
        )  # fmt: skip
        said += [f"{norm} {format_number(means.iloc[-1])}"] if len(means) else []
    figure.update_xaxes(
        tickvals=list(range(len(batches))), ticktext=[str(batch) for batch in batches], showgrid=False,
        zeroline=False, title_text="statistics batch B (samples)",
    )  # fmt: skip
    figure.update_yaxes(title_text=label)
    return finish(
        figure, groups, title=f"{label.capitalize()} by norm and statistics batch",
        subtitle="Last epoch. A point is a replicate, a mean over its finished runs; a bar is the mean of those.",
        alt=f"Mean {label} at the largest B of each norm: {', '.join(said)}.",
    )  # fmt: skip


def learning_curves(curves: pd.DataFrame, trials: pd.DataFrame, norms: Sequence[str], name: str) -> go.Figure:
    """A metric by epoch, a line a norm, at the smallest and at the largest B."""
    groups, label = TrialGroups(), build_measures()[name].label
    figure, table, batches = epoch_panels(curves[curves["name"].eq(name)], trials, [270])
    for (batch, norm), group in groups_of(table, "batch_size", "norm"):
        number = groups.number(group["row"])
        add_band(figure, group, "value", number, style(norm, norms), row=1, col=batches.index(batch) + 1)
    figure.update_yaxes(title_text=label, col=1)
    last = table[table["epoch"].eq(table["epoch"].max())].groupby("norm", sort=False)["value"].median()
    said = ", ".join(f"{norm} {format_number(value)}" for norm, value in last.dropna().items())
    return finish(
        figure, groups, title=f"How the networks learn: {label} by epoch",
        subtitle="Finished runs: median (line) and range (band) over replicates and all other factors.",
        alt=f"Median {label} after the last epoch: {said}.",
    )  # fmt: skip


def epoch_panels(
    rows: pd.DataFrame, trials: pd.DataFrame, heights: Sequence[int]
) -> tuple[go.Figure, pd.DataFrame, list[int]]:
    """An empty grid with a column for the smallest and the largest B, the rows of both, and the two B.

    The rows get the columns norm, batch_size, and row: that of the trial table.
    """
    batches = sorted({trials["batch_size"].min(), trials["batch_size"].max()})
    of_trials = trials[trials["batch_size"].isin(batches)][["key", "norm", "batch_size"]]
    table = rows.merge(of_trials.rename_axis("row").reset_index(), on="key")
    figure = panels(heights, len(batches), column_titles=[f"B = {batch}" for batch in batches])
    figure.update_xaxes(title_text="epoch", row=len(heights))
    return figure, table, batches


def _leaves_out(effect: Effect, line: float) -> bool:
    return effect.estimate.above(line) or effect.estimate.below(line)


def _rounded(values: object) -> list[float | None]:
    """Six digits: more would make the page larger, not the figure sharper."""
    return [None if value is None else float(f"{value:.6g}") for value in values]  # type: ignore[attr-defined]


def _say(effects: Sequence[Effect], most: int = 4) -> str:
    """The first numbers of a forest, in words."""
    shown = [effect for effect in effects if effect.measure == effects[0].measure][:most]
    said = []
    for effect in shown:
        low, high = effect.estimate.low, effect.estimate.high
        interval = "no interval" if low is None or high is None else f"{format_number(low)} to {format_number(high)}"
        said.append(f"{effect.comparison} {format_number(effect.estimate.value or 0.0)} ({interval})")
    more = f" {len(effects) - len(shown)} more numbers are in the table." if len(effects) > len(shown) else ""
    return f"{effects[0].measure.label.capitalize()}: {join_words(said)}.{more}"
