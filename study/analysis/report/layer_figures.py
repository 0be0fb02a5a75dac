"""Figures of what each layer chose: maps of switch weights, triangles, and a slider over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from study.analysis.report.figure_texts import format_weights
from study.analysis.report.levels import LEVEL, choose_ends, find_largest_pool, list_levels, select_largest_pool
from study.analysis.report.plot_style import (
    FAINT,
    GREY,
    SYMBOLS,
    TrialGroups,
    add_colour_bar,
    build_axis_panels,
    choose_style,
    finish_figure,
    join_title,
)
from study.analysis.statistics.profiles import build_profiles
from study.analysis.wording import join_words
from study.config.choice_space import ChoiceSpace
from study.config.wording import format_plural

LAYER_COLUMNS = ["statistic", "position", "layer", "depth_fraction", "stage"]


def compute_layer_means(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace) -> pd.DataFrame:
    """Mean switch weights of trials by axis and layer: `LAYER_COLUMNS`, and a column for each member of the pool.

    switch: rows of one epoch of each trial. Networks with the same layers are averaged layer by layer, in order; others
    at the positions (stage and place in the block) that they have in common. position: from 0, the first, to 1, the
    last. Only trials with the largest pool are averaged.
    """
    (table,) = _compute_means_by_epoch(switch.assign(epoch=0), trials, space).values()
    return table


def _compute_means_by_epoch(weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace) -> dict[int, pd.DataFrame]:
    """`compute_layer_means` of every epoch. weights: rows of epochs that all trials have."""
    rows = weights[weights["key"].isin(select_largest_pool(trials)["key"])]
    layers = rows.drop_duplicates(["key", "layer_index", "layer"])
    same = layers.groupby(["layer_index", "layer"], observed=True).size().eq(rows["key"].nunique()).all()
    rows = rows if same else _match_positions(rows, space)
    order = rows["layer_index"].rank(method="dense") - 1
    rows = rows.assign(position=(order / max(order.max(), 1)).round(4))
    groups = rows.groupby(["epoch", *LAYER_COLUMNS, "normalizer"], observed=True, dropna=False)
    means = groups["weight"].mean().unstack("normalizer")
    table = means.reindex(columns=[name for name in space.member_names if name in means]).reset_index()
    in_order = table.sort_values(["epoch", "statistic", "position"])
    by_epoch = in_order.drop(columns="epoch").groupby(in_order["epoch"])
    return {int(epoch): means.reset_index(drop=True) for epoch, means in by_epoch}


# ------------------------------------------------------------------------------------------------------ maps


def draw_weight_maps(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, by: str = "") -> go.Figure:
    """Switch weights by layer: a row of maps for each level, one column per axis.

    trials: from `split_by_level`. by: the factor in words.
    """
    levels, groups, tables = list_levels(trials), TrialGroups(), {}
    figure = build_axis_panels([64] * len(levels), space, gap=12, labels=levels)
    for row, name in enumerate(levels, start=1):
        group = select_largest_pool(trials[trials[LEVEL].eq(name)])
        tables[name] = compute_layer_means(switch, group, space)
        _add_maps(figure, tables[name], space, row, name=name, group=groups.number(group.index), n_trials=len(group))
    _label_depth_axis(figure, list(tables.values()), len(levels))
    add_colour_bar(figure, "weight", "right", yref="container", y=0, yanchor="bottom")
    figure.update_yaxes(showgrid=False, ticks="").update_xaxes(showgrid=False, zeroline=False, ticks="")
    size = len(find_largest_pool(trials).split(","))
    return finish_figure(
        figure, groups, title=join_title("What the layers chose, from input to output", by),
        subtitle="Last epoch; mean over replicates and all other factors. "
        f"With {size} {space.noun}s, equal weights are {1 / size:.2f} each.",
        alt=_describe_means(tables), below=90,
    )  # fmt: skip


def _add_maps(
    figure: go.Figure, table: pd.DataFrame, space: ChoiceSpace, row: int, *, name: str, group: int, n_trials: int
) -> None:
    """Adds a map for each axis. table: from `compute_layer_means`."""
    for col, axis in enumerate(space.axes, start=1):
        part = table[table["statistic"].eq(axis.name)]
        members = [str(member) for member in reversed(part.columns[len(LAYER_COLUMNS) :])]
        figure.add_heatmap(
            z=part[members].T.round(4).to_numpy().tolist(), x=part["position"].to_list(), y=members, xgap=1, ygap=1,
            coloraxis="coloraxis", row=row, col=col,
            customdata=[[[group, layer] for layer in part["layer"]]] * len(members),
            hovertemplate=f"%{{customdata[1]}}, {name}<br>%{{y}}, {axis.label}: %{{z:.3f}}"
            f"<br>mean of {format_plural(n_trials, 'trial')}<extra></extra>",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- triangles


def draw_triangles(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, by: str = "") -> go.Figure | None:
    """Switch weights in the triangle of a pool of three: one point per layer, coloured by depth; None for other pools.

    trials: from `split_by_level`; each level has a symbol, and those with a smaller pool are left out. by: the factor
    in words.
    """
    trials = select_largest_pool(trials)
    pool = find_largest_pool(trials).split(",")
    if len(pool) != 3:
        return None
    groups, tables, columns = TrialGroups(), {}, len(space.axes)
    figure = build_axis_panels([270], space, lift=20, specs=[[{"type": "ternary"}] * columns], horizontal_spacing=0.08)
    for rank, name in enumerate(list_levels(trials)):
        group = trials[trials[LEVEL].eq(name)]
        tables[name] = compute_layer_means(switch, group, space)
        mark = {"symbol": SYMBOLS[rank % len(SYMBOLS)], "size": 9, "line": {"width": 0.8, "color": GREY}}
        number = groups.number(group.index)
        _add_triangle_points(figure, tables[name], space, pool, mark, name=name, group=number, n_trials=len(group))
    for number in range(1, columns + 1):
        figure.update_layout({_name_triangle(number): _style_triangle(pool)})
    add_colour_bar(figure, "relative depth", "top", y=-0.08, yanchor="top", tickvals=[0, 0.5, 1])
    return finish_figure(
        figure, groups, title=join_title(f"Where the layers lie between {join_words(pool)}", by),
        subtitle="Last epoch. A point is a layer, a mean over replicates and all other factors; in a corner a layer "
        f"uses one {space.noun} alone, in the middle all equally.",
        alt=_describe_means(tables), below=110,
    ).update_layout(margin_l=20, margin_r=20)  # fmt: skip


def _add_triangle_points(
    figure: go.Figure, table: pd.DataFrame, space: ChoiceSpace, pool: Sequence[str], mark: dict[str, Any], *, name: str,
    group: int, n_trials: int,
) -> None:  # fmt: skip
    """Adds the layers of a level to the triangle of each axis, and the level to the legend."""
    for col, axis in enumerate(space.axes, start=1):
        part = table[table["statistic"].eq(axis.name)]
        weights = {corner: part[member].round(4).to_list() for corner, member in zip("abc", pool, strict=True)}
        figure.add_scatterternary(
            **weights, mode="markers", name=name, legendgroup=name, showlegend=False,
            marker={**mark, "color": part["depth_fraction"].round(3).to_list(), "coloraxis": "coloraxis"},
            customdata=[[group, layer] for layer in part["layer"]], subplot=_name_triangle(col),
            hovertemplate=f"%{{customdata[1]}}, {name}<br>{pool[0]} %{{a:.3f}}, {pool[1]} %{{b:.3f}}, "
            f"{pool[2]} %{{c:.3f}}<br>mean of {format_plural(n_trials, 'trial')}<extra></extra>",
        )  # fmt: skip
    # An empty trace for the legend, which then shows the symbol in grey instead of the colour of a depth.
    figure.add_scatterternary(
        a=[None], b=[None], c=[None], mode="markers", name=name, legendgroup=name, marker={**mark, "color": GREY}
    )


def _name_triangle(number: int) -> str:
    """Plotly's name of the triangle in a column: `ternary`, `ternary2`, ..."""
    return f"ternary{number if number > 1 else ''}"


def _style_triangle(pool: Sequence[str]) -> dict[str, Any]:
    side = {"tickvals": [1 / 3, 2 / 3], "ticks": "", "gridcolor": FAINT, "showticklabels": False, "linecolor": GREY}
    sides = {f"{corner}axis": {"title": {"text": member}, **side} for corner, member in zip("abc", pool, strict=True)}
    return {**sides, "bgcolor": "rgba(0,0,0,0)"}


# ---------------------------------------------------------------------------------------------------- epochs


def draw_layers_by_epoch(
    weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, by: str = "", most: int = 21
) -> go.Figure:
    """Switch weights by layer at one epoch, with a slider over epochs: a row for each of two levels (`choose_ends`).

    weights: rows of every epoch. trials: from `split_by_level`. by: the factor in words. most: the number of epochs
    shown, evenly spaced and with the last.
    """
    levels, groups = choose_ends(trials), TrialGroups()
    by_level = {level: select_largest_pool(trials[trials[LEVEL].eq(level)]) for level in levels}
    epochs = _select_epochs(weights, list(by_level.values()), most)
    shown = weights[weights["epoch"].isin(epochs)]
    tables = {
        (epoch, level): table
        for level, group in by_level.items()
        for epoch, table in _compute_means_by_epoch(shown, group, space).items()
    }
    last = [tables[epochs[-1], level] for level in levels]
    figure = build_axis_panels([170] * len(levels), space, gap=12, labels=levels)
    lines = [
        (level, axis, str(member))
        for level, table in zip(levels, last, strict=True)
        for axis in space.axis_names for member in table.columns[len(LAYER_COLUMNS):]
    ]  # fmt: skip
    for level, axis, member in lines:
        row = levels.index(level) + 1
        _add_layer_line(figure, last[row - 1], space, axis, member, row=row, level=level,
                        group=groups.number(by_level[level].index), n_trials=len(by_level[level]))  # fmt: skip
    parts = {key: dict(tuple(table.groupby("statistic"))) for key, table in tables.items()}
    steps = {
        str(epoch): [_round_line(parts[epoch, level][axis], member) for level, axis, member in lines]
        for epoch in epochs
    }  # fmt: skip
    _label_depth_axis(figure, last, len(levels))
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_layout(sliders=[_build_slider(steps)])
    first, end = (format_weights(_average_layers(tables[epoch, levels[-1]])) for epoch in (epochs[0], epochs[-1]))
    return finish_figure(
        figure, groups, title=join_title("What each layer chose, epoch by epoch", by),
        subtitle="The slider moves through the epochs; 0 is before training. A point is a layer, a mean over "
        "replicates and all other factors.",
        alt=f"At {levels[-1]}, means over layers at epoch {epochs[0]}: {first}; at epoch {epochs[-1]}: {end}.",
        below=165,
    )  # fmt: skip


def _select_epochs(weights: pd.DataFrame, groups: Sequence[pd.DataFrame], most: int) -> list[int]:
    """The epochs that all groups of trials have; at most `most`, evenly spaced and with the last."""
    found = [set(weights["epoch"][weights["key"].isin(group["key"])]) for group in groups]
    epochs = sorted(int(epoch) for epoch in set.intersection(*found))
    return [epochs[place] for place in sorted({*np.linspace(0, len(epochs) - 1, most).round().astype(int)})]


def _add_layer_line(
    figure: go.Figure, table: pd.DataFrame, space: ChoiceSpace, axis: str, member: str, *, row: int, level: str,
    group: int, n_trials: int,
) -> None:  # fmt: skip
    part, style = table[table["statistic"].eq(axis)], choose_style(member, colours=space.colours)
    style["marker"] |= {"size": 5}
    style["line"] |= {"width": 1.5}
    figure.add_scatter(
        x=part["position"].to_list(), y=_round_line(part, member), mode="lines+markers", **style,
        row=row, col=space.axis_names.index(axis) + 1,
        customdata=[[group, layer] for layer in part["layer"]],
        hovertemplate=f"%{{customdata[1]}}, {level}<br>{member}, {space.labels[axis]}: %{{y:.3f}}"
        f"<br>mean of {format_plural(n_trials, 'trial')}<extra></extra>",
    )  # fmt: skip


def _build_slider(steps: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """A slider that replaces the y values of all traces. steps: by label, the y values in the order of the traces."""
    return {
        "active": len(steps) - 1, "currentvalue": {"prefix": "epoch "}, "pad": {"t": 58}, "len": 1, "x": 0,
        "bgcolor": FAINT, "activebgcolor": GREY, "bordercolor": GREY, "tickcolor": GREY,
        "steps": [{"label": name, "method": "restyle", "args": [{"y": lines}]} for name, lines in steps.items()],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- shared


def _match_positions(rows: pd.DataFrame, space: ChoiceSpace) -> pd.DataFrame:
    """Rows of networks whose layers differ, at the positions that they have in common in place of layers."""
    networks = rows.groupby(["key", "epoch"], observed=True).ngroup()  # a network at another epoch is another one
    profiles = build_profiles(rows.assign(key=networks), space)
    epochs = rows["epoch"].groupby(networks).first().loc[[int(network) for network in profiles]].to_numpy()
    members = [name for name in space.member_names if name in set(rows["normalizer"])]
    index = pd.MultiIndex.from_product(
        [range(len(profiles)), space.axis_names, range(len(profiles.positions)), space.member_names],
        names=["network", "statistic", "layer_index", "normalizer"],
    )
    weights = np.stack(list(profiles.values())).ravel() if len(profiles) else np.empty(0)
    table = pd.Series(weights, index, name="weight").reset_index()
    table = table[table["normalizer"].isin(members)]
    number = table["layer_index"].to_numpy()
    names = np.array(profiles.positions, dtype=object)[number]
    stages = [int(name.partition(",")[0].removeprefix("stage ")) for name in names]
    named: pd.DataFrame = table.assign(
        epoch=epochs[table["network"]], layer=names, stage=stages,
        depth_fraction=number / max(len(profiles.positions) - 1, 1),
    )  # fmt: skip
    return named


def _average_layers(table: pd.DataFrame) -> pd.Series:
    """Mean weights by member, over layers and axes."""
    means: pd.Series = table[table.columns[len(LAYER_COLUMNS) :]].mean()
    return means


def _describe_means(tables: Mapping[str, pd.DataFrame]) -> str:
    levels = [f"{name}: {format_weights(_average_layers(table))}" for name, table in tables.items()]
    return f"Mean weights over layers. {'; '.join(levels)}."


def _round_line(table: pd.DataFrame, member: str) -> list[float]:
    return [float(value) for value in table[member].round(3)]


def _label_depth_axis(figure: go.Figure, tables: Sequence[pd.DataFrame], rows: int) -> None:
    """Ticks where stages begin, if the networks of all panels agree in their stages."""
    layers = [table.drop_duplicates("position") for table in tables]
    stages = {tuple(zip(table["position"], table["stage"], strict=True)) for table in layers}
    if len(stages) > 1:
        figure.update_xaxes(tickvals=[0, 0.5, 1]).update_xaxes(title_text="layers, from input to output", row=rows)
        return
    firsts = layers[0].drop_duplicates("stage")
    figure.update_xaxes(tickvals=firsts["position"].to_list(), ticktext=[f"{stage:g}" for stage in firsts["stage"]])
    figure.update_xaxes(title_text="layers by stage", row=rows)
