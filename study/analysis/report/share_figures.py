"""Figures of the share of each member, a mean over layers: by place in the block, by level of a factor, by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from study.analysis.report.figure_texts import format_bars, format_interval, format_weights
from study.analysis.report.levels import LEVEL, choose_ends, list_levels, shorten_levels
from study.analysis.report.plot_style import (
    TrialGroups,
    add_band,
    build_axis_panels,
    build_epoch_panels,
    build_error_bars,
    choose_style,
    finish_figure,
    iterate_groups,
    join_title,
)
from study.analysis.statistics.cell_means import estimate_mean_of_cells
from study.analysis.statistics.intervals import Estimate
from study.analysis.weight_tables import BACKBONE
from study.analysis.wording import format_number
from study.config.choice_space import ChoiceSpace

AVERAGED = "Last epoch; mean over layers, and over all other factors."
MAX_ROWS = 4  # levels that are shown below each other


def draw_share_by_place(
    switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, confidence: float, by: str = ""
) -> go.Figure | None:
    """Means of the switch weights over the layers of each place in a block: one row per level, one column per axis.

    trials: from `split_by_level`. by: the factor in words. None where layers have one place only.
    """
    levels, groups = choose_ends(trials, MAX_ROWS), TrialGroups()
    switch = switch[switch["key"].isin(trials["key"][trials[LEVEL].isin(levels)])]
    places = [str(place) for place in switch.groupby("place", observed=True)["layer_index"].mean().sort_values().index]
    if len(places) < 2:
        return None
    shares = _compute_shares(switch, trials, "place", LEVEL)
    labels = levels if len(levels) > 1 else []
    figure = build_axis_panels([170] * len(levels), space, gap=14, labels=labels)
    members = _list_members(shares, space)
    for (level, axis, member), group in iterate_groups(shares, LEVEL, "statistic", "normalizer"):
        shift = 0.09 * (members.index(str(member)) - (len(members) - 1) / 2)
        items = _estimate_levels(group, "place", confidence)
        figure.add_scatter(
            x=[round(places.index(item.level) + shift, 4) for item in items], y=_round(items),
            error_y=build_error_bars(item.estimate for item in items), mode="markers",
            row=levels.index(level) + 1, col=space.axis_names.index(axis) + 1,
            **choose_style(str(member), colours=space.colours),
            customdata=[[groups.number(item.rows), item.level, format_interval(item.estimate)] for item in items],
            hovertemplate=f"{member}, %{{customdata[1]}}, {level}: %{{y:.3f}}<br>%{{customdata[2]}}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(range=[-0.5, len(places) - 0.5], tickvals=list(range(len(places))), ticktext=places,
                        showgrid=False, zeroline=False)  # fmt: skip
    means = shares.groupby(["place", "normalizer"], observed=True)["weight"].mean().unstack("normalizer")
    described = "; ".join(f"{place}: {format_weights(means.loc[place, members].dropna())}" for place in places)
    left_out = " The lowest and the highest level." if levels != list_levels(trials) else ""
    return finish_figure(
        figure, groups, title=join_title("What layers chose at each place in a block", by),
        subtitle="norm1 and norm2 are the first and the second norm of a block, shortcut is the norm on its skip "
        f"connection. {AVERAGED}{left_out} {format_bars(confidence)}."
        if {"norm1", "shortcut"} <= set(places) else f"{AVERAGED}{left_out} {format_bars(confidence)}.",
        alt=f"Mean weights by place. {described}.",
    )  # fmt: skip


def draw_share_by_level(
    switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, confidence: float, by: str, also: str = ""
) -> go.Figure:
    """Means of the switch weights over layers against the levels of a factor, one column per axis.

    trials: from `split_by_level`. by: the factor in words. also: what the study changes along with it, as a sentence.
    """
    levels, groups, described = list_levels(trials), TrialGroups(), []
    shares = _compute_shares(switch, trials, LEVEL)
    figure, places = build_axis_panels([190], space), range(len(levels))
    for (axis, member), group in iterate_groups(shares, "statistic", "normalizer"):
        items = _estimate_levels(group, LEVEL, confidence)
        figure.add_scatter(
            x=[levels.index(item.level) for item in items], y=_round(items),
            error_y=build_error_bars(item.estimate for item in items),
            mode="lines+markers" if trials[LEVEL].cat.ordered else "markers",
            row=1, col=space.axis_names.index(axis) + 1, **choose_style(str(member), colours=space.colours),
            customdata=[[groups.number(item.rows), item.level, format_interval(item.estimate)] for item in items],
            hovertemplate=f"{member}, %{{customdata[1]}}: %{{y:.3f}}<br>%{{customdata[2]}}<extra></extra>",
        )  # fmt: skip
        described.append(f"{space.labels[axis]}: {member} {_describe_ends(items)}")
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(
        range=[-0.4, len(levels) - 0.6], tickvals=list(places), ticktext=shorten_levels(levels), showgrid=False,
        zeroline=False, title_text="B (samples)" if by == "batch size" else by,
    )  # fmt: skip
    return finish_figure(
        figure, groups, title=join_title(f"How much of each {space.noun} the networks use", by),
        subtitle=" ".join(filter(None, [AVERAGED, also, f"{format_bars(confidence)}."])),
        alt=f"{'; '.join(described)}.",
    )  # fmt: skip


def draw_share_by_setting(
    weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, confidence: float
) -> go.Figure:
    """Means of the switch weights over layers by task and data set: one row of panels per role, one column per axis.

    weights: rows of one epoch of each trial, of backbones and heads. trials: from `split_by_level`.
    """
    shares, groups = _compute_shares(weights, trials, "role", LEVEL), TrialGroups()
    roles = sorted(shares["role"].unique(), key=lambda role: role != BACKBONE)
    occurring = {role: set(shares[shares["role"].eq(role)][LEVEL]) for role in roles}
    levels = {role: [level for level in list_levels(trials) if level in occurring[role]] for role in roles}
    members = _list_members(shares, space)
    heights = [10 + (14 + 10 * len(members)) * len(levels[role]) for role in roles]
    figure = build_axis_panels(heights, space, gap=12, labels=[role.replace("_", " ") for role in roles])
    for (role, axis, member), group in iterate_groups(shares, "role", "statistic", "normalizer"):
        shift = 0.22 * (members.index(str(member)) - (len(members) - 1) / 2)
        items = _estimate_levels(group, LEVEL, confidence)
        figure.add_scatter(
            x=_round(items), y=[round(levels[role].index(item.level) + shift, 4) for item in items],
            error_x=build_error_bars(item.estimate for item in items), mode="markers", row=roles.index(role) + 1,
            col=space.axis_names.index(axis) + 1, **choose_style(str(member), colours=space.colours),
            customdata=[[groups.number(item.rows), item.level, format_interval(item.estimate)] for item in items],
            hovertemplate=f"{member}, {role} of %{{customdata[1]}}: %{{x:.3f}}<br>%{{customdata[2]}}<extra></extra>",
        )  # fmt: skip
    for row, role in enumerate(roles, start=1):
        texts = [level.replace(" on ", "<br>on ") for level in levels[role]]
        figure.update_yaxes(range=[len(texts) - 0.5, -0.5], zeroline=False, row=row, tickvals=list(range(len(texts))),
                            ticktext=texts)  # fmt: skip
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    figure.update_xaxes(title_text="weight", row=len(roles))
    return finish_figure(
        figure, groups, title="What the networks chose by task and data set",
        subtitle=f"{AVERAGED} {format_bars(confidence)}.", alt=_describe_settings(shares, levels, space),
    )  # fmt: skip


def draw_share_by_epoch(
    switch_epochs: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, by: str = ""
) -> go.Figure:  # fmt: skip
    """Means of switch weights over layers by epoch: one row per axis, a column for each of two levels.

    trials: from `split_by_level`. by: the factor in words.
    """
    network, groups = switch_epochs[switch_epochs["scope"].eq("network")], TrialGroups()
    figure, table, levels = build_epoch_panels(network, trials, [190] * len(space.axes))
    for (level, axis, member), group in iterate_groups(table, LEVEL, "statistic", "normalizer"):
        row, style = space.axis_names.index(axis) + 1, choose_style(str(member), colours=space.colours)
        add_band(figure, group, "weight", groups.number(group["row"]), style, row=row, col=levels.index(level) + 1)
        figure.update_yaxes(title_text=space.labels[axis], row=row, col=1)
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    last = table[table["epoch"].eq(table.groupby("key")["epoch"].transform("max"))]
    means = last.groupby([LEVEL, "normalizer"], observed=True)["weight"].mean().round(2)
    described = "; ".join(f"{member} {weight:.2f} at {level}" for (level, member), weight in means.items())
    return finish_figure(
        figure, groups, title=join_title("How the choice is made over the epochs", by),
        subtitle="Network means of the switch weights: median (line) and range (band) over replicates and all other "
        "factors. Epoch 0 is before training.",
        alt=f"Mean weights after the last epoch: {described}.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _LevelShare:
    """The mean share at a level, and the rows of the trials behind it."""

    level: Any
    estimate: Estimate
    rows: list[int]


def _compute_shares(weights: pd.DataFrame, trials: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Mean weights over the layers of each trial, by statistic, normalizer and the columns `by`.

    by: columns of `weights` (role, place) or of `trials`. The result also has trial_id, replicate and row, the trial's
    row in the trial table.
    """
    of_layers = [name for name in ("role", "place") if name in by]
    of_trials = ["key", "trial_id", "replicate", "row", *(name for name in by if name not in of_layers)]
    selected = trials.rename_axis("row").reset_index()[of_trials]
    table = weights[["key", *of_layers, "statistic", "normalizer", "weight"]].merge(selected, on="key")
    columns = [*by, "statistic", "normalizer", "trial_id", "replicate", "row"]
    shares: pd.DataFrame = table.groupby(columns, observed=True)["weight"].mean().reset_index()
    return shares


def _estimate_levels(shares: pd.DataFrame, column: str, confidence: float) -> list[_LevelShare]:
    """The mean over cells at each level of a column, with its interval over replicates."""
    found = []
    for level, part in iterate_groups(shares, column):
        grid = part.pivot(index="trial_id", columns="replicate", values="weight").to_numpy(float)
        estimate = estimate_mean_of_cells(grid, confidence)
        found.append(_LevelShare(level=level, estimate=estimate, rows=part["row"].tolist()))
    return found


def _list_members(shares: pd.DataFrame, space: ChoiceSpace) -> list[str]:
    occurring = set(shares["normalizer"])
    return [name for name in space.member_names if name in occurring]


def _round(items: Iterable[_LevelShare]) -> list[float]:
    return [round(item.estimate.value or 0.0, 5) for item in items]


def _describe_ends(levels: list[_LevelShare]) -> str:
    """The shares at the first and the last level."""
    ends = levels[:1] if len(levels) == 1 else [levels[0], levels[-1]]
    return ", ".join(f"{format_number(item.estimate.value or 0, 2)} at {item.level}" for item in ends)


def _describe_settings(shares: pd.DataFrame, levels: dict[str, list[str]], space: ChoiceSpace) -> str:
    """Mean weights of each role at each level."""
    described = []
    for role, names in levels.items():
        rows = shares[shares["role"].eq(role)]
        means = rows.groupby([LEVEL, "normalizer"], observed=True)["weight"].mean().unstack("normalizer")
        means = means.reindex(columns=[name for name in space.member_names if name in means])
        described += [f"{role} of {name}: {format_weights(means.loc[name].dropna())}" for name in names]
    return f"Mean weights. {'; '.join(described)}."
