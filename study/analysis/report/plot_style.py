"""What all figures of the report share: grids of panels, colours, symbols, and the trials behind each point.

A title states what is shown, its subtitle what is averaged, what an interval holds and how many trials there are.
Text and grid lines have no colour here: the page sets them for a light screen, a dark one, or paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from study.analysis.report.levels import LEVEL, choose_ends
from study.analysis.statistics.intervals import Estimate
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.wording import format_plural

# Colours of norms. Okabe and Ito (2008): distinct with every kind of colour vision, on white and on black.
NORM_COLOURS = {**NORMALIZATION.colours, "sn": "#D55E00", "ssn": "#56B4E9"}
ACCENT = NORM_COLOURS["sn"]
GREY = "#8C8C8C"  # visible on white and on black; all controls have it and differ by symbol and dash
FAINT = "rgba(140,140,140,0.3)"
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "star", "hexagon"),
    *("cross", "bowtie", "x", "pentagon"),
)
DASHES = ("solid", "dot", "dash", "longdash", "dashdot")


class TrialGroups:
    """The trials behind the points of a figure: groups of rows of the trial table, each stored once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}

    def number(self, rows: Iterable[int]) -> int:
        """The number of the group of these rows, with which a point's customdata starts; -1 for no rows."""
        group = tuple(sorted({int(row) for row in rows}))
        return self._numbers.setdefault(group, len(self._numbers)) if group else -1

    @property
    def rows(self) -> list[list[int]]:
        """The groups in the order of their numbers."""
        return [list(group) for group in self._numbers]

    @property
    def n_trials(self) -> int:
        """Number of trials in any group."""
        return len({row for group in self._numbers for row in group})


# ------------------------------------------------------------------------------------------ panels and layout


def build_panels(
    heights: Sequence[int], columns: int, *, gap: int = 24, labels: Sequence[str] = (), lift: int = 0, **options: Any
) -> go.Figure:
    """An empty grid of panels that share their axes, with rows of these heights in pixels.

    gap: pixels between rows. labels: one title per row, at the left. lift: pixels between column titles and panels.
    """
    gap, lift = (gap + 18, lift + 18) if labels else (gap, lift)
    gap = gap if len(heights) > 1 else 0
    whole = sum(heights) + gap * (len(heights) - 1)
    shared = {"shared_xaxes": True, "shared_yaxes": True, "horizontal_spacing": 0.04}
    empty = go.Figure(layout_template="none")  # `finish_figure` sets the template; plotly's own would be built in vain
    figure = make_subplots(
        len(heights), columns, row_heights=list(heights), vertical_spacing=gap / whole, figure=empty, **shared | options
    )
    figure.update_annotations(yshift=lift)
    for row, label in enumerate(labels, start=1):
        top = figure.get_subplot(row, 1).yaxis.domain[1]
        figure.add_annotation(
            text=label, x=0, y=top, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False
        )
    room = 12 + lift + 18 * ("column_titles" in options)
    return figure.update_layout(height=whole + room, margin_t=room)


def build_axis_panels(heights: Sequence[int], space: ChoiceSpace, **options: Any) -> go.Figure:
    """`build_panels` with a column for each axis of the choice space."""
    return build_panels(heights, len(space.axes), column_titles=list(space.labels.values()), **options)


def build_epoch_panels(
    rows: pd.DataFrame, trials: pd.DataFrame, heights: Sequence[int]
) -> tuple[go.Figure, pd.DataFrame, list[str]]:
    """An empty grid with a column for each of two levels (`choose_ends`), the rows of their trials, and the levels.

    trials: from `split_by_level`. The rows get the columns norm, `LEVEL`, and row: the row number in the trial table.
    """
    levels = choose_ends(trials)
    selected = trials[trials[LEVEL].isin(levels)][["key", "norm", LEVEL]]
    table = rows.merge(selected.rename_axis("row").reset_index(), on="key")
    figure = build_panels(heights, len(levels), column_titles=levels)
    figure.update_xaxes(title_text="epoch", row=len(heights))
    return figure, table, levels


def finish_figure(
    figure: go.Figure, groups: TrialGroups, *, title: str, subtitle: str, alt: str, below: int = 76
) -> go.Figure:
    """Adds title, legend, fonts and the groups of trials. A legend entry is shown once, however many panels have it.

    alt: the main numbers in one or two sentences, for screen readers. below: pixels under the panels, for ticks, axis
    title and legend.
    """
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is None:
            trace.showlegend = trace.name is not None and trace.name not in seen
        if trace.showlegend:
            seen.add(trace.name)
    n_trials = groups.n_trials
    subtitle = f"{subtitle} From {format_plural(n_trials, 'trial')}." if n_trials else subtitle
    figure.layout.template = _build_template()
    return figure.update_annotations(font_size=13).update_layout(
        title={"text": title, "subtitle": {"text": subtitle}}, height=figure.layout.height + below,
        meta={"trials": groups.rows, "alt": alt}, margin={"l": 48, "r": 12, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12}, hoverlabel={"align": "left"},
    )  # fmt: skip


@cache
def _build_template() -> go.layout.Template:
    """Plotly's default template with axes of our own. Merging the two for every figure would take most of its time."""
    axis = {"gridcolor": FAINT, "linecolor": GREY, "zerolinecolor": FAINT, "automargin": True, "exponentformat": "none",
            "title": {"font": {"size": 13}, "standoff": 6}}  # fmt: skip
    return go.layout.Template(pio.templates["plotly"]).update(layout={"xaxis": axis, "yaxis": axis})


# -------------------------------------------------------------------------------------------- marks and lines


def choose_style(name: str, names: Sequence[str] = (), colours: Mapping[str, str] = NORM_COLOURS) -> dict[str, Any]:
    """Name, colour, symbol and dash of a trace. Names in `colours` look the same in every figure of every study."""
    rank = list(dict.fromkeys([*colours, *names])).index(name)
    dash = "solid" if name in colours else DASHES[rank % len(DASHES)]
    colour, symbol = colours.get(name, GREY), SYMBOLS[rank % len(SYMBOLS)]
    return {
        "name": name, "legendgroup": name, "legendrank": rank,
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "line": {"color": colour, "width": 2, "dash": dash},
    }  # fmt: skip


def build_error_bars(estimates: Iterable[Estimate]) -> dict[str, Any]:
    """Error bars from the value to the interval's ends; of length 0 where there is no interval."""
    items = [(item.value or 0.0, item.low, item.high) for item in estimates]
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [0 if high is None else round(high - value, 6) for value, _, high in items],
        "arrayminus": [0 if low is None else round(value - low, 6) for value, low, _ in items],
    }  # fmt: skip


def add_band(
    figure: go.Figure, rows: pd.DataFrame, value: str, group: int, style: dict[str, Any], *, row: int, col: int
) -> None:
    """Adds the median (line) and the range (band) of a value by epoch."""
    by_epoch = rows.groupby("epoch")[value].agg(["min", "median", "max"]).dropna().round(5)
    epochs, colour = by_epoch.index.to_list(), style["marker"]["color"]
    figure.add_scatter(
        x=epochs + epochs[::-1], y=[*by_epoch["max"], *by_epoch["min"][::-1]], fill="toself", fillcolor=colour,
        opacity=0.2, mode="none", hoverinfo="skip", showlegend=False, legendgroup=style["name"], row=row, col=col,
    )  # fmt: skip
    figure.add_scatter(
        x=epochs, y=by_epoch["median"].to_list(), mode="lines", row=row, col=col, **style,
        customdata=[[group, low, high] for low, high in zip(by_epoch["min"], by_epoch["max"], strict=True)],
        hovertemplate="%{fullData.name}, epoch %{x}: median %{y:.3f}, "
        "range %{customdata[1]:.3f} to %{customdata[2]:.3f}<extra></extra>",
    )  # fmt: skip


def add_colour_bar(figure: go.Figure, title: str, side: str, **place: Any) -> None:
    """Adds a colour scale from 0 to 1 for the traces that use `coloraxis`, with its bar at the bottom left."""
    bar = {"title": {"text": title, "side": side}, "orientation": "h", "thickness": 10, "len": 0.5, "x": 0,
           "xanchor": "left", **place}  # fmt: skip
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar})


def iterate_groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Groups by one column (its values) or several (tuples of values)."""
    yield from table.groupby(columns[0] if len(columns) == 1 else list(columns), observed=True)


def join_title(title: str, by: str) -> str:
    """`What the layers chose, by batch size`; the title alone where a figure is not split."""
    return f"{title}, by {by}" if by else title
