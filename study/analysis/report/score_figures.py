"""Figures of scores: the last epoch by norm and statistics batch, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from study.analysis.report.levels import LEVEL
from study.analysis.report.plot_style import (
    TrialGroups,
    add_band,
    build_epoch_panels,
    build_panels,
    choose_style,
    finish_figure,
    iterate_groups,
)
from study.analysis.statistics.measures import Measure
from study.analysis.wording import format_number
from study.config.wording import format_plural


def draw_metric_by_norm(trials: pd.DataFrame, norms: Sequence[str], metric: Measure) -> go.Figure:
    """A metric by norm and B: one point per replicate, and a bar for the mean over replicates."""
    batches = sorted(trials["batch_size"].unique())
    figure, groups, described = build_panels([310], 1), TrialGroups(), []
    for position, norm in enumerate(norms):
        shift = min(0.18, 0.8 / len(norms)) * (position - (len(norms) - 1) / 2)
        places = {batch: round(place + shift, 4) for place, batch in enumerate(batches)}
        runs = trials[trials["norm"].eq(norm) & trials[metric.name].notna()]
        style = choose_style(norm, norms)
        points = runs.groupby(["batch_size", "replicate"])[metric.name].mean()
        _add_replicates(figure, groups, runs, points, places, style)
        means = points.groupby(level=0).mean()
        _add_means(figure, groups, runs, means, places, style)
        described += [f"{norm} {format_number(means.iloc[-1])}"] if len(means) else []
    figure.update_xaxes(
        tickvals=list(range(len(batches))), ticktext=[str(batch) for batch in batches], showgrid=False,
        zeroline=False, title_text="statistics batch B (samples)",
    )  # fmt: skip
    figure.update_yaxes(title_text=metric.label)
    return finish_figure(
        figure, groups, title=f"{metric.label.capitalize()} by norm and statistics batch",
        subtitle="Last epoch. A point is a replicate, the mean over its finished runs; a bar is their mean.",
        alt=f"Mean {metric.label} at the largest B of each norm: {', '.join(described)}.",
    )  # fmt: skip


def draw_learning_curves(
    curves: pd.DataFrame, trials: pd.DataFrame, norms: Sequence[str], metric: Measure
) -> go.Figure:
    """A metric by epoch, one line per norm: a column for each of two levels. trials: from `split_by_level`."""
    groups = TrialGroups()
    figure, table, levels = build_epoch_panels(curves[curves["name"].eq(metric.name)], trials, [270])
    for (level, norm), group in iterate_groups(table, LEVEL, "norm"):
        number = groups.number(group["row"])
        add_band(figure, group, "value", number, choose_style(norm, norms), row=1, col=levels.index(level) + 1)
    figure.update_yaxes(title_text=metric.label, col=1)
    last = table[table["epoch"].eq(table["epoch"].max())].groupby("norm", sort=False)["value"].median()
    described = ", ".join(f"{norm} {format_number(value)}" for norm, value in last.dropna().items())
    return finish_figure(
        figure, groups, title=f"How the networks learn: {metric.label} by epoch",
        subtitle="Finished runs: median (line) and range (band) over replicates and all other factors.",
        alt=f"Median {metric.label} after the last epoch: {described}.",
    )  # fmt: skip


def _add_replicates(
    figure: go.Figure, groups: TrialGroups, runs: pd.DataFrame, points: pd.Series, places: dict[int, float],
    style: dict[str, Any],
) -> None:  # fmt: skip
    """Adds a point for each B and replicate. points: by (B, replicate)."""
    figure.add_scatter(
        x=[places[batch] for batch, _ in points.index], y=[float(f"{value:.6g}") for value in points],
        mode="markers", opacity=0.75, **style,
        customdata=[
            [groups.number(part.index), style["name"], int(batch), int(replicate), format_plural(len(part), "trial")]
            for (batch, replicate), part in iterate_groups(runs, "batch_size", "replicate")
        ],
        hovertemplate="%{customdata[1]}, B = %{customdata[2]}, replicate %{customdata[3]}: %{y:.4f}"
        "<br>mean of %{customdata[4]}<extra></extra>",
    )  # fmt: skip


def _add_means(
    figure: go.Figure, groups: TrialGroups, runs: pd.DataFrame, means: pd.Series, places: dict[int, float],
    style: dict[str, Any],
) -> None:  # fmt: skip
    """Adds a bar at the mean of each B. means: by B."""
    figure.add_scatter(
        x=[places[batch] for batch in means.index], y=[float(f"{value:.6g}") for value in means], mode="markers",
        showlegend=False, legendgroup=style["name"],
        marker={"symbol": "line-ew", "size": 12, "line": {"width": 2.5, "color": style["line"]["color"]}},
        customdata=[
            [
                groups.number(part.index), style["name"], int(batch),
                format_plural(part["replicate"].nunique(), "replicate"),
            ]
            for batch, part in iterate_groups(runs, "batch_size")
        ],
        hovertemplate="%{customdata[1]}, B = %{customdata[2]}: mean %{y:.4f} of %{customdata[3]}<extra></extra>",
    )  # fmt: skip
