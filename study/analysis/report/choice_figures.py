"""Figures of what networks chose: switch weights by layer, B, epoch and task. Frames in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from study.analysis.report.figures import epoch_panels
from study.analysis.report.plot_style import (
    FAINT,
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
from study.analysis.statistics.intervals import Estimate, replicate_interval
from study.analysis.statistics.profiles import DEPTH_GRID, depth_profiles
from study.analysis.wording import format_number, join_words
from study.config.choice_space import ChoiceSpace

LAYERS = ["statistic", "place", "layer", "depth_fraction", "stage"]


def layer_weights(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace) -> pd.DataFrame:
    """Mean switch weights of trials, by statistic and layer: the columns `LAYERS`, and one a normalizer of the pool.

    switch: rows of one epoch of each trial. Of networks with the same layers they are those layers, in order; of
    others the relative depths of `DEPTH_GRID`, and stage is missing. place: from 0, the first, to 1, the last. Of
    trials whose pools differ, those of the largest count: at B = 1, bn is not in the pool.
    """
    rows = switch[switch["key"].isin(largest_pool(trials)["key"])]
    layers = rows.drop_duplicates(["key", "layer_index", "layer"])
    alike = layers.groupby(["layer_index", "layer"], observed=True).size().eq(rows["key"].nunique()).all()
    rows = rows if alike else _by_relative_depth(rows, space)
    order = rows["layer_index"].rank(method="dense") - 1
    rows = rows.assign(place=(order / max(order.max(), 1)).round(4))
    means = rows.groupby([*LAYERS, "normalizer"], observed=True, dropna=False)["weight"].mean().unstack("normalizer")
    table = means.reindex(columns=[name for name in space.member_names if name in means]).reset_index()
    in_order: pd.DataFrame = table.sort_values(["statistic", "place"], ignore_index=True)
    return in_order


def largest_pool(trials: pd.DataFrame) -> pd.DataFrame:
    """Those of the trials with the largest pool."""
    largest: pd.DataFrame = trials[trials["pool"].eq(max(trials["pool"], key=len, default=""))]
    return largest


def weight_maps(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, rows: str, what: str) -> go.Figure:
    """Switch weights by layer: a row of maps for each level of the column `rows` of `trials`, a column a statistic.

    what: whose weights they are ("ResNet-14").
    """
    levels, groups, tables, said = _in_order(trials[rows]), TrialGroups(), [], []
    labels = [_say_level(rows, level) for level in levels]
    figure = panels(
        [64] * len(levels), len(space.axes), gap=12, labels=labels, column_titles=list(space.labels.values())
    )
    for row, level in enumerate(levels, start=1):
        group = largest_pool(trials[trials[rows].eq(level)])
        table, number = layer_weights(switch, group, space), groups.number(group.index)
        tables.append(table)
        for col, statistic in enumerate(space.axis_names, start=1):
            part = table[table["statistic"].eq(statistic)]
            names = [str(name) for name in reversed(part.columns[len(LAYERS) :])]
            figure.add_heatmap(
                z=part[names].T.round(4).to_numpy().tolist(), x=part["place"].to_list(), y=names, xgap=1, ygap=1,
                coloraxis="coloraxis", row=row, col=col,
                customdata=[[[number, layer] for layer in part["layer"]]] * len(names),
                hovertemplate=f"%{{customdata[1]}}, {_say_level(rows, level)}<br>%{{y}}, {space.labels[statistic]}: %{{z:.3f}}"
                f"<br>mean of {len(group)} trials<extra></extra>",
            )  # fmt: skip
        said.append(f"{_say_level(rows, level)}: {_say_means(table)}")
    _mark_stages(figure, tables, len(levels))
    bar = {"title": {"text": "weight", "side": "right"}, "orientation": "h", "thickness": 10, "len": 0.5, "x": 0,
           "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}  # fmt: skip
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_yaxes(showgrid=False, ticks="").update_xaxes(showgrid=False, zeroline=False, ticks="")
    return finish(
        figure, groups, title=f"What the layers chose, from input to output: {what}",
        subtitle="Last epoch; mean over replicates and all other factors. An even choice of three: 0.33 each.",
        alt=f"Mean weights over layers. {'; '.join(said)}.", below=90,
    )  # fmt: skip


def ternary(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, symbol: str, what: str) -> go.Figure | None:
    """Switch weights in the triangle of a pool of three: a point a layer, coloured by depth; None for other pools.

    symbol: the column of `trials` whose levels have a symbol each. Levels with a smaller pool are left out.
    """
    trials = largest_pool(trials)
    pool = max(trials["pool"], key=len, default="").split(",")
    if len(pool) != 3:
        return None
    levels, groups, said = _in_order(trials[symbol]), TrialGroups(), []
    figure = panels(
        [270],
        len(space.axes),
        lift=20,
        specs=[[{"type": "ternary"}] * len(space.axes)],
        horizontal_spacing=0.08,
        column_titles=list(space.labels.values()),
    )
    for rank, level in enumerate(levels):
        group = trials[trials[symbol].eq(level)]
        table, number, name = layer_weights(switch, group, space), groups.number(group.index), _say_level(symbol, level)
        mark = {"symbol": SYMBOLS[rank % len(SYMBOLS)], "size": 9, "line": {"width": 0.8, "color": GREY}}
        for col, statistic in enumerate(space.axis_names, start=1):
            part = table[table["statistic"].eq(statistic)]
            weights = {corner: part[member].round(4).to_list() for corner, member in zip("abc", pool, strict=True)}
            figure.add_scatterternary(
                **weights, mode="markers", name=name, legendgroup=name, showlegend=False,
                marker={**mark, "color": part["depth_fraction"].round(3).to_list(), "coloraxis": "coloraxis"},
                customdata=[[number, layer] for layer in part["layer"]], subplot=f"ternary{col if col > 1 else ''}",
                hovertemplate=f"%{{customdata[1]}}, {name}<br>{pool[0]} %{{a:.3f}}, {pool[1]} %{{b:.3f}}, "
                f"{pool[2]} %{{c:.3f}}<br>mean of {len(group)} trials<extra></extra>",
            )  # fmt: skip
        # The legend shows symbols, not the colour of a depth.
        figure.add_scatterternary(a=[None], b=[None], c=[None], mode="markers", name=name, legendgroup=name,
                                  marker={**mark, "color": GREY})  # fmt: skip
        said.append(f"{name}: {_say_means(table)}")
    for number in range(1, len(space.axes) + 1):
        axes = {f"{side}axis": {"title": {"text": member}, "tickvals": [1 / 3, 2 / 3], "ticks": "", "gridcolor": FAINT,
                                "showticklabels": False, "linecolor": GREY}
                for side, member in zip("abc", pool, strict=True)}  # fmt: skip
        figure.update_layout({f"ternary{number if number > 1 else ''}": {**axes, "bgcolor": "rgba(0,0,0,0)"}})
    bar = {"title": {"text": "relative depth", "side": "top"}, "orientation": "h", "thickness": 10, "len": 0.5,
           "x": 0, "xanchor": "left", "y": -0.08, "yanchor": "top", "tickvals": [0, 0.5, 1]}  # fmt: skip
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar})
    return finish(
        figure, groups, title=f"Where the layers lie between {join_words(pool)}: {what}",
        subtitle="Last epoch. A point is a layer, a mean over replicates and all other factors; in a corner a layer "
        f"uses one {space.noun}, in the middle all alike.",
        alt=f"Mean weights over layers. {'; '.join(said)}.", below=110,
    ).update_layout(margin_l=20, margin_r=20)  # fmt: skip


def share_by_batch(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, confidence: float) -> go.Figure:
    """Network means of the switch weights against B: a row a network depth, a column a statistic."""
    depths, groups, said = sorted(trials["depth"].unique()), TrialGroups(), []
    shares = _shares(switch, trials, "depth", "batch_size")
    labels = [f"ResNet-{depth}" for depth in depths]
    figure = panels(
        [160] * len(depths), len(space.axes), gap=14, labels=labels, column_titles=list(space.labels.values())
    )
    figure.update_xaxes(type="category", categoryarray=[str(level) for level in sorted(trials["batch_size"].unique())])
    for (depth, statistic, name), group in groups_of(shares, "depth", "statistic", "normalizer"):
        parts = {str(batch): part for batch, part in groups_of(group, "batch_size")}
        items = {batch: replicate_interval(part["weight"].to_numpy(), confidence) for batch, part in parts.items()}
        figure.add_scatter(
            x=list(items), y=_values(items.values()), error_y=error_bars(items.values()), mode="lines+markers",
            row=depths.index(depth) + 1, col=space.axis_names.index(statistic) + 1, **style(str(name), colours=space.colours),
            customdata=[
                [groups.number(_rows_of(parts[batch])), _say_interval(item)] for batch, item in items.items()
            ],
            hovertemplate=f"{name}, ResNet-{depth}, B = %{{x}}: %{{y:.3f}}<br>%{{customdata[1]}}<extra></extra>",
        )  # fmt: skip
        first, *_, last = [*items, *items]
        said.append(
            f"ResNet-{depth}, {space.labels[statistic]}: {name} {format_number(items[first].value or 0, 2)} at B = {first}"
            + (f", {format_number(items[last].value or 0, 2)} at B = {last}" if last != first else "")
        )
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(title_text="B (samples)", row=len(depths))
    return finish(
        figure, groups, title=f"How much of each {space.noun} the networks use, against the statistics batch",
        subtitle="Last epoch; mean over layers, and over all other factors inside a replicate. Bars: "
        f"{confidence * 100:g} % intervals over replicates.",
        alt=f"{'; '.join(said)}.",
    )  # fmt: skip


def share_by_setting(
    weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, setting: str, confidence: float
) -> go.Figure:
    """Means of the switch weights over layers by level of `setting`: a row of panels a role, a column a statistic.

    weights: rows of one epoch of each trial, of backbones and heads.
    """
    shares = _shares(weights, trials, "role", setting)
    roles, groups, said = list(shares["role"].unique()), TrialGroups(), []
    roles.sort(key=lambda role: role != "backbone")
    levels = {role: _in_order(shares[shares["role"].eq(role)][setting]) for role in roles}
    names = [name for name in space.member_names if name in set(shares["normalizer"])]
    heights = [10 + (14 + 10 * len(names)) * len(levels[role]) for role in roles]
    figure = panels(
        heights,
        len(space.axes),
        gap=12,
        labels=[role.replace("_", " ") for role in roles],
        column_titles=list(space.labels.values()),
    )
    for (role, statistic, name), group in groups_of(shares, "role", "statistic", "normalizer"):
        parts = dict(tuple(group.groupby(setting)))
        items = {level: replicate_interval(part["weight"].to_numpy(), confidence) for level, part in parts.items()}
        aside = 0.22 * (names.index(name) - (len(names) - 1) / 2)
        figure.add_scatter(
            x=_values(items.values()), y=[round(levels[role].index(level) + aside, 4) for level in items],
            error_x=error_bars(items.values()), mode="markers", row=roles.index(role) + 1,
            col=space.axis_names.index(statistic) + 1, **style(str(name), colours=space.colours),
            customdata=[
                [groups.number(_rows_of(parts[level])), str(level), _say_interval(item)]
                for level, item in items.items()
            ],
            hovertemplate=f"{name}, {role} of %{{customdata[1]}}: %{{x:.3f}}<br>%{{customdata[2]}}<extra></extra>",
        )  # fmt: skip
    for row, role in enumerate(roles, start=1):
        ticks = {"tickvals": list(range(len(levels[role]))), "ticktext": [_wrap(level) for level in levels[role]]}
        figure.update_yaxes(range=[len(levels[role]) - 0.5, -0.5], zeroline=False, row=row, **ticks)
        means = shares[shares["role"].eq(role)].groupby([setting, "normalizer"], observed=True)["weight"].mean()
        said += [f"{role} of {level}: " + ", ".join(f"{name} {format_number(means[level, name], 2)}"
                                                    for name in space.member_names if (level, name) in means)
                 for level in levels[role]]  # fmt: skip
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    figure.update_xaxes(title_text="weight", row=len(roles))
    return finish(
        figure, groups, title="What the networks chose by task and data set",
        subtitle="Last epoch; mean over layers, and over all other factors inside a replicate. Bars: "
        f"{confidence * 100:g} % intervals over replicates.",
        alt=f"Mean weights. {'; '.join(said)}.",
    )  # fmt: skip


def share_by_epoch(switch_epochs: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace) -> go.Figure:
    """Network means of the switch weights by epoch: a row a statistic, the smallest and the largest B."""
    network, groups = switch_epochs[switch_epochs["scope"].eq("network")], TrialGroups()
    figure, table, batches = epoch_panels(network, trials, [190] * len(space.axes))
    for (batch, statistic, name), group in groups_of(table, "batch_size", "statistic", "normalizer"):
        place = {"row": space.axis_names.index(statistic) + 1, "col": batches.index(batch) + 1}
        add_band(figure, group, "weight", groups.number(group["row"]), style(str(name), colours=space.colours), **place)
        figure.update_yaxes(title_text=space.labels[statistic], row=place["row"], col=1)
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    last = table[table["epoch"].eq(table.groupby("key")["epoch"].transform("max"))]
    means = last.groupby(["batch_size", "normalizer"], observed=True)["weight"].mean().round(2)
    said = "; ".join(f"{name} {weight:.2f} at B = {batch}" for (batch, name), weight in means.items())
    return finish(
        figure, groups, title="How the choice is made: network means of the switch weights by epoch",
        subtitle="Median (line) and range (band) over replicates and all other factors. Epoch 0 is before training.",
        alt=f"Mean weights after the last epoch: {said}.",
    )  # fmt: skip


def layers_by_epoch(
    weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, what: str, most: int = 21
) -> go.Figure:
    """Switch weights by layer at one epoch, with a slider over epochs: a row the smallest and the largest B.

    weights: rows of every epoch. most: of more epochs, so many are shown, evenly spread and with the last.
    """
    batches, groups = sorted({trials["batch_size"].min(), trials["batch_size"].max()}), TrialGroups()
    of_batch = {batch: largest_pool(trials[trials["batch_size"].eq(batch)]) for batch in batches}
    found = [set(weights["epoch"][weights["key"].isin(group["key"])]) for group in of_batch.values()]
    epochs = sorted(int(epoch) for epoch in set.intersection(*found))
    epochs = [epochs[place] for place in sorted({*np.linspace(0, len(epochs) - 1, most).round().astype(int)})]
    labels = [f"B = {batch}" for batch in batches]
    figure = panels(
        [170] * len(batches), len(space.axes), gap=12, labels=labels, column_titles=list(space.labels.values())
    )
    by_epoch = dict(tuple(weights[weights["epoch"].isin(epochs)].groupby("epoch")))
    tables = {(epoch, batch): layer_weights(by_epoch[epoch], group, space) for epoch in epochs
              for batch, group in of_batch.items()}  # fmt: skip
    lines = [
        (batch, statistic, str(name))
        for batch in batches for statistic in space.axis_names for name in tables[epochs[-1], batch].columns[len(LAYERS):]
    ]  # fmt: skip
    for batch, statistic, name in lines:
        table = tables[epochs[-1], batch].query("statistic == @statistic")
        figure.add_scatter(
            x=table["place"].to_list(), y=_line(table, name), mode="lines+markers", **_small(style(name)),
            row=batches.index(batch) + 1, col=space.axis_names.index(statistic) + 1,
            customdata=[[groups.number(of_batch[batch].index), layer] for layer in table["layer"]],
            hovertemplate=f"%{{customdata[1]}}, B = {batch}<br>{name}, {space.labels[statistic]}: %{{y:.3f}}"
            f"<br>mean of {len(of_batch[batch])} trials<extra></extra>",
        )  # fmt: skip
    parts = {key: dict(tuple(table.groupby("statistic"))) for key, table in tables.items()}
    shown = {
        str(epoch): [_line(parts[epoch, batch][statistic], name) for batch, statistic, name in lines]
        for epoch in epochs
    }  # fmt: skip
    _mark_stages(figure, [tables[epochs[-1], batch] for batch in batches], len(batches))
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_layout(sliders=[_slider(shown)])
    first, last = (_say_means(tables[epoch, batches[-1]]) for epoch in (epochs[0], epochs[-1]))
    return finish(
        figure, groups, title=f"What each layer chose, epoch by epoch: {what}",
        subtitle="The slider moves through the epochs; 0 is before training. A point is a layer, a mean over "
        "replicates and all other factors.",
        alt=f"At B = {batches[-1]}, means over layers at epoch {epochs[0]}: {first}; at epoch {epochs[-1]}: {last}.",
        below=165,
    )  # fmt: skip


def _by_relative_depth(rows: pd.DataFrame, space: ChoiceSpace) -> pd.DataFrame:
    """Profiles of networks with unlike layers as rows, with a depth in place of a layer."""
    profiles = depth_profiles(rows, space)
    members = [name for name in space.member_names if name in set(rows["normalizer"])]
    index = pd.MultiIndex.from_product(
        [list(profiles), space.axis_names, range(len(DEPTH_GRID)), space.member_names],
        names=["key", "statistic", "layer_index", "normalizer"],
    )
    table = pd.Series(np.stack(list(profiles.values())).ravel(), index, name="weight").reset_index()
    table = table[table["normalizer"].isin(members)]
    depth = DEPTH_GRID[table["layer_index"].to_numpy()]
    named: pd.DataFrame = table.assign(
        depth_fraction=depth, layer=[f"relative depth {at:.1f}" for at in depth], stage=np.nan
    )
    return named


def _shares(weights: pd.DataFrame, trials: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Weights by the columns `by`, statistic, normalizer and replicate; `rows` are the trials in each.

    First a mean over the layers of each trial, then over the trials of a replicate.
    """
    of_trials = trials.rename_axis("row").reset_index()[["key", "row", "replicate", *set(by) - {"role"}]]
    table = weights[["key", "role", "statistic", "normalizer", "weight"]].merge(of_trials, on="key")
    groups = [*by, "statistic", "normalizer", "replicate"]
    of_layers = table.groupby([*groups, "row"], observed=True)["weight"].mean().reset_index()
    of_trial = of_layers.groupby(groups, observed=True)
    shares: pd.DataFrame = of_trial.agg(weight=("weight", "mean"), rows=("row", tuple)).reset_index()
    return shares


def _rows_of(shares: pd.DataFrame) -> list[int]:
    return [row for rows in shares["rows"] for row in rows]


def _in_order(levels: pd.Series) -> list[Any]:
    """Numbers by size, words as they come."""
    found = list(levels.unique())
    return found if any(isinstance(level, str) for level in found) else sorted(found)


def _say_level(name: str, level: object) -> str:
    return f"B = {level}" if name == "batch_size" else str(level)


def _wrap(level: object) -> str:
    return str(level).replace(" on ", "<br>on ")


def _say_means(table: pd.DataFrame) -> str:
    """Mean weights over layers and statistics: `in 0.20, ln 0.50, bn 0.30`."""
    means = table[table.columns[len(LAYERS) :]].mean()
    return ", ".join(f"{name} {format_number(value, 2)}" for name, value in means.items())


def _say_interval(item: Estimate) -> str:
    if item.low is None or item.high is None:
        return f"no interval from {item.n} replicate{'s' if item.n != 1 else ''}"
    return f"interval {item.low:.3f} to {item.high:.3f}, {item.n} replicates"


def _values(items: Any) -> list[float]:
    return [round(item.value, 5) for item in items]


def _line(table: pd.DataFrame, name: str) -> list[float]:
    return [float(value) for value in table[name].round(3)]


def _small(looks: dict[str, Any]) -> dict[str, Any]:
    return {**looks, "marker": {**looks["marker"], "size": 5}, "line": {**looks["line"], "width": 1.5}}


def _mark_stages(figure: go.Figure, tables: Sequence[pd.DataFrame], rows: int) -> None:
    """Ticks where stages begin; relative depths where the networks of the panels have unlike stages."""
    layers = [table.drop_duplicates("place") for table in tables]
    stages = {tuple(zip(table["place"], table["stage"], strict=True)) for table in layers}
    if len(stages) > 1 or layers[0]["stage"].isna().any():
        figure.update_xaxes(tickvals=[0, 0.5, 1]).update_xaxes(title_text="relative depth", row=rows)
        return
    firsts = layers[0].drop_duplicates("stage")
    figure.update_xaxes(tickvals=firsts["place"].to_list(), ticktext=[f"{stage:g}" for stage in firsts["stage"]])
    figure.update_xaxes(title_text="layers by stage", row=rows)


def _slider(shown: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """A slider that gives all traces other y: by the name of the step, in the order of the traces."""
    return {
        "active": len(shown) - 1, "currentvalue": {"prefix": "epoch "}, "pad": {"t": 58}, "len": 1, "x": 0,
        "bgcolor": FAINT, "activebgcolor": GREY, "bordercolor": GREY, "tickcolor": GREY,
        "steps": [{"label": name, "method": "restyle", "args": [{"y": lines}]} for name, lines in shown.items()],
    }  # fmt: skip
