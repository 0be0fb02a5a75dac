"""Figures of the report: frames in, plotly figures out.

A title states what is shown, its subtitle what is averaged and what an interval holds. Text and grid lines
have no colour here: the page sets them for a light screen, a dark one, or paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from study.analysis.answers import Effect
from study.analysis.measures import MEASURES
from study.analysis.profiles import DEPTH_GRID, STATISTICS
from study.analysis.statistics import Estimate, Floats, replicate_interval
from study.norms.names import NORMALIZERS

# Okabe and Ito (2008): told apart with every kind of colour vision, on white and on black.
COLOURS = {
    "in": "#E69F00", "ln": "#009E73", "bn": "#0072B2", "gn": "#CC79A7", "sn": "#D55E00", "ssn": "#56B4E9",
}  # fmt: skip
CONTROL_COLOUR = "#8C8C8C"  # controls differ by symbol and dash
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "star",
    "hexagon",
    "cross",
    "bowtie",
    "x",
    "pentagon",
)
DASHES = ("solid", "dot", "dash", "longdash", "dashdot")
WORDS = {"mean": "mean weights", "var": "variance weights"}


def weight_maps(
    profiles: Mapping[str, Floats], trials: pd.DataFrame, statistic: str, across: str = "depth"
) -> go.Figure:
    """Switch weights of one statistic by relative depth: a map for each B (rows) and each level of `across` (columns).

    `profiles` are those of `depth_profiles`, `trials` the levels of the trials to show.
    """
    trials = trials[trials["key"].isin(list(profiles))]
    levels, batches = sorted(trials[across].unique()), sorted(trials["batch_size"].unique())
    names = [name for name in reversed(NORMALIZERS) if name in set(",".join(trials["pool"]).split(","))]
    figure = make_subplots(
        len(batches), len(levels), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.15 / len(batches), x_title="relative depth of the layer (0 first, 1 last)",
        column_titles=[f"ResNet-{level}" if across == "depth" else str(level) for level in levels],
    )  # fmt: skip
    for (level, batch), group in _groups(trials, across, "batch_size"):
        # At B = 1 without bn, unless statistics are synchronized: no weight there, rather than a weight of 0.
        pool = max(group["pool"], key=len)
        group = group[group["pool"].eq(pool)]
        mean = np.mean([profiles[key][STATISTICS.index(statistic)] for key in group["key"]], axis=0)
        members = pool.split(",")
        weights = [mean[:, NORMALIZERS.index(name)] if name in members else [None] * len(mean) for name in names]
        figure.add_heatmap(
            z=weights, x=DEPTH_GRID, y=names, xgap=1, ygap=1,
            coloraxis="coloraxis", hovertemplate="depth %{x:.1f}, %{y}: %{z:.2f}<extra></extra>",
            row=batches.index(batch) + 1, col=levels.index(level) + 1,
        )  # fmt: skip
    for row, batch in enumerate(batches, start=1):
        figure.update_yaxes(title_text=f"B = {batch}", row=row, col=1)
    bar = {"title": "weight", "thickness": 10, "x": 1.01}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_xaxes(showgrid=False, zeroline=False).update_yaxes(showgrid=False)
    return _finish(
        figure, f"What the layers chose: {WORDS[statistic]}, from the first layer to the last",
        "Last epoch; averaged over replicates and all other factors. An even choice of three: 0.33 each.",
        height=110 + 85 * len(batches),
    )  # fmt: skip


def share_by_batch(switch: pd.DataFrame, trials: pd.DataFrame, confidence: float) -> go.Figure:
    """Network means of the switch weights against B: a row a network depth, a column a statistic."""
    means = switch.groupby(["key", "statistic", "normalizer"], observed=True)["weight"].mean().reset_index()
    table = means.merge(trials[["key", "replicate", "depth", "batch_size"]], on="key")
    depths = sorted(table["depth"].unique())
    figure = make_subplots(
        len(depths), 2, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.1,
        column_titles=[WORDS[statistic] for statistic in STATISTICS], x_title="statistics batch B (samples)",
    )  # fmt: skip
    figure.update_xaxes(type="category", categoryarray=[str(level) for level in sorted(table["batch_size"].unique())])
    by = ["depth", "statistic", "normalizer", "batch_size", "replicate"]
    shares = table.groupby(by, observed=True)["weight"].mean().reset_index()
    for (depth, statistic, name), group in _groups(shares, "depth", "statistic", "normalizer"):
        levels = {
            str(batch): replicate_interval(part["weight"].to_numpy(), confidence)
            for batch, part in _groups(group, "batch_size")
        }
        figure.add_scatter(
            x=list(levels), y=[item.value for item in levels.values()], error_y=_bars(levels.values()),
            mode="lines+markers", row=depths.index(depth) + 1, col=STATISTICS.index(statistic) + 1,
            **_style(name),
        )  # fmt: skip
    for row, depth in enumerate(depths, start=1):
        figure.update_yaxes(title_text=f"weight, ResNet-{depth}", row=row, col=1)
    figure.update_yaxes(range=[0, 1])
    return _finish(
        figure, "How much of each normalizer the networks use, against the statistics batch",
        f"Last epoch; mean over layers, and over all other factors inside a replicate. Bars: "
        f"{confidence * 100:g} % intervals over replicates.",
        height=120 + 190 * len(depths),
    )  # fmt: skip


def metric_by_norm(trials: pd.DataFrame, norms: Sequence[str], metric: str) -> go.Figure:
    """A metric by norm and B: a point a replicate, a bar the mean over replicates."""
    batches = sorted(trials["batch_size"].unique())
    figure = go.Figure()
    for position, norm in enumerate(norms):
        shift = min(0.18, 0.8 / len(norms)) * (position - (len(norms) - 1) / 2)
        points = trials[trials["norm"].eq(norm)].groupby(["batch_size", "replicate"])[metric].mean().dropna()
        means = points.groupby(level=0).mean()
        style = _style(norm, norms)
        figure.add_scatter(
            x=[batches.index(batch) + shift for batch, _ in points.index], y=points.to_numpy(),
            mode="markers", opacity=0.75, **style,
        )  # fmt: skip
        figure.add_scatter(
            x=[batches.index(batch) + shift for batch in means.index], y=means.to_numpy(), mode="markers",
            hoverinfo="skip", showlegend=False, legendgroup=norm,
            marker={"symbol": "line-ew", "size": 16, "line": {"width": 2.5, "color": style["line"]["color"]}},
        )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(batches))), ticktext=[str(batch) for batch in batches], showgrid=False,
        zeroline=False, title_text="statistics batch B (samples)",
    )  # fmt: skip
    figure.update_yaxes(title_text=MEASURES[metric].label)
    return _finish(
        figure, f"{MEASURES[metric].label.capitalize()} by norm and statistics batch",
        "Last epoch. A point is a replicate, a mean over its finished runs; a bar is the mean of those.",
        height=380,
    )  # fmt: skip


def forest(effects: Sequence[Effect], line: float, title: str, subtitle: str, log: bool = False) -> go.Figure:
    """Effects with intervals, a panel a measure; small points are replicates. At `line` nothing differs."""
    measures = list(dict.fromkeys(effect.measure for effect in effects))
    rows = [[effect for effect in effects if effect.measure == measure] for measure in measures]
    height = 90 + 70 * (len(measures) - 1) + 34 * len(effects)
    figure = make_subplots(len(measures), 1, row_heights=[len(group) for group in rows], vertical_spacing=70 / height)
    for number, group in enumerate(rows, start=1):
        names = [effect.comparison for effect in group]
        for effect in group:
            figure.add_scatter(
                x=list(effect.per_replicate), y=[effect.comparison] * len(effect.per_replicate),
                mode="markers", marker={"color": CONTROL_COLOUR, "size": 5}, row=number, col=1,
                hovertemplate="a replicate: %{x:.4f}<extra></extra>",
            )  # fmt: skip
        figure.add_scatter(
            x=[effect.estimate.value for effect in group], y=names, mode="markers", row=number, col=1,
            error_x=_bars(effect.estimate for effect in group), hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            marker={"color": COLOURS["sn"], "size": 10, "symbol": "diamond"},
        )  # fmt: skip
        figure.add_vline(x=line, line={"color": CONTROL_COLOUR, "dash": "dot"}, row=number, col=1)
        figure.update_yaxes(range=[len(group) - 0.4, -0.6], automargin=True, row=number, col=1)
        figure.update_xaxes(title_text=MEASURES[measures[number - 1]].label, row=number, col=1)
    figure.update_xaxes(zeroline=False, title_standoff=4)
    if log:
        ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
        figure.update_xaxes(type="log", matches="x", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_layout(showlegend=False)
    return _finish(figure, title, subtitle, height=height)


def learning_curves(curves: pd.DataFrame, trials: pd.DataFrame, norms: Sequence[str], name: str) -> go.Figure:
    """A metric by epoch, a line a norm, at the smallest and at the largest B."""
    figure, table, batches = _epoch_panels(curves[curves["name"].eq(name)], trials)
    for (batch, norm), group in _groups(table, "batch_size", "norm"):
        _add_band(figure, group, "value", _style(norm, norms), row=1, col=batches.index(batch) + 1)
    figure.update_yaxes(title_text=MEASURES[name].label, col=1)
    return _finish(
        figure, f"How the networks learn: {MEASURES[name].label} by epoch",
        "Finished runs: median (line) and range (band) over replicates and all other factors.", height=340,
    )  # fmt: skip


def share_by_epoch(switch_epochs: pd.DataFrame, trials: pd.DataFrame) -> go.Figure:
    """Network means of the switch weights by epoch: a row a statistic, the smallest and the largest B."""
    network = switch_epochs[switch_epochs["scope"].eq("network")]
    figure, table, batches = _epoch_panels(network, trials, STATISTICS)
    for (batch, statistic, name), group in _groups(table, "batch_size", "statistic", "normalizer"):
        place = {"row": STATISTICS.index(statistic) + 1, "col": batches.index(batch) + 1}
        _add_band(figure, group, "weight", _style(name), **place)
        figure.update_yaxes(title_text=WORDS[statistic], range=[0, 1], row=place["row"], col=1)
    return _finish(
        figure, "How the choice is made: network means of the switch weights by epoch",
        "Median (line) and range (band) over replicates and all other factors. Epoch 0 is before training.",
        height=520,
    )  # fmt: skip


def _epoch_panels(
    rows: pd.DataFrame, trials: pd.DataFrame, panels: Sequence[str] = ("",)
) -> tuple[go.Figure, pd.DataFrame, list[int]]:
    """An empty grid with a column for the smallest and the largest B, the rows of both, and the two B."""
    batches = sorted({trials["batch_size"].min(), trials["batch_size"].max()})
    table = rows.merge(trials[trials["batch_size"].isin(batches)][["key", "norm", "batch_size"]], on="key")
    figure = make_subplots(
        len(panels), len(batches), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=0.08, column_titles=[f"B = {batch}" for batch in batches], x_title="epoch",
    )  # fmt: skip
    return figure, table, batches


def _add_band(figure: go.Figure, rows: pd.DataFrame, value: str, style: dict[str, Any], *, row: int, col: int) -> None:
    """Median and range of a value by epoch."""
    by_epoch = rows.groupby("epoch")[value].agg(["min", "median", "max"]).dropna()
    epochs, colour = by_epoch.index.to_list(), style["marker"]["color"]
    edge = [*by_epoch["max"], *by_epoch["min"][::-1]]
    figure.add_scatter(
        x=epochs + epochs[::-1], y=edge, fill="toself", fillcolor=colour, opacity=0.2, mode="none",
        hoverinfo="skip", showlegend=False, legendgroup=style["name"], row=row, col=col,
    )  # fmt: skip
    figure.add_scatter(x=epochs, y=by_epoch["median"].to_numpy(), mode="lines", row=row, col=col, **style)


def _style(name: str, norms: Sequence[str] = ()) -> dict[str, Any]:
    """Name, colour, symbol and dash. Those in `COLOURS` look the same in every figure of every study."""
    rank = [*COLOURS, *norms].index(name)
    dash = "solid" if name in COLOURS else DASHES[rank % len(DASHES)]
    colour, symbol = COLOURS.get(name, CONTROL_COLOUR), SYMBOLS[rank % len(SYMBOLS)]
    return {
        "name": name, "legendgroup": name, "legendrank": rank,
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "line": {"color": colour, "width": 2, "dash": dash},
    }  # fmt: skip


def _groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Groups by one column (keys) or several (tuples)."""
    yield from table.groupby(columns[0] if len(columns) == 1 else list(columns), observed=True)


def _bars(estimates: Iterable[Estimate]) -> dict[str, Any]:
    """Error bars from the value to the interval's ends; none where there is no interval."""
    items = [(item.value or 0.0, item.low, item.high) for item in estimates]
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [0 if high is None else high - value for value, _, high in items],
        "arrayminus": [0 if low is None else value - low for value, low, _ in items],
    }  # fmt: skip


def _finish(figure: go.Figure, title: str, subtitle: str, height: int) -> go.Figure:
    """What all figures share. A legend entry shows once, however many panels have it."""
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is None:
            trace.showlegend = trace.name is not None and trace.name not in seen
        if trace.showlegend:
            seen.add(trace.name)
    # The legend, the titles of the columns and the data stand below each other.
    legend = bool(seen) and figure.layout.showlegend is not False
    top = 12 + 20 * bool(figure.layout.annotations) + 28 * legend
    figure.update_annotations(font_size=13).update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    return figure.update_layout(
        template="none", title={"text": title, "subtitle": {"text": subtitle}}, height=height,
        margin={"l": 60, "r": 10, "t": top, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
    )  # fmt: skip
