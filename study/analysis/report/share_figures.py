"""Figures of the share of each member, a mean over layers: by statistics batch, by task and data set, by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from study.analysis.report.figure_texts import format_bars, format_interval, format_weights
from study.analysis.report.plot_style import (
    TrialGroups,
    add_band,
    build_axis_panels,
    build_epoch_panels,
    build_error_bars,
    choose_style,
    finish_figure,
    iterate_groups,
    sort_levels,
)
from study.analysis.statistics.intervals import Estimate, replicate_interval
from study.analysis.weight_tables import BACKBONE
from study.analysis.wording import format_number
from study.config.choice_space import ChoiceSpace

AVERAGED = "Last epoch; mean over layers, and over all other factors inside a replicate."


def draw_share_by_batch(switch: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, confidence: float) -> go.Figure:
    """Means of the switch weights over layers against B: one row per network depth, one column per axis."""
    depths, groups, described = sorted(trials["depth"].unique()), TrialGroups(), []
    shares = _compute_shares(switch, trials, "depth", "batch_size")
    figure = build_axis_panels([160] * len(depths), space, gap=14, labels=[f"ResNet-{depth}" for depth in depths])
    figure.update_xaxes(type="category", categoryarray=[str(level) for level in sorted(trials["batch_size"].unique())])
    for (depth, axis, member), group in iterate_groups(shares, "depth", "statistic", "normalizer"):
        levels = _estimate_levels(group, "batch_size", confidence)
        figure.add_scatter(
            x=[str(item.level) for item in levels], y=_round(levels),
            error_y=build_error_bars(item.estimate for item in levels), mode="lines+markers",
            row=depths.index(depth) + 1, col=space.axis_names.index(axis) + 1,
            **choose_style(str(member), colours=space.colours),
            customdata=[[groups.number(item.rows), format_interval(item.estimate)] for item in levels],
            hovertemplate=f"{member}, ResNet-{depth}, B = %{{x}}: %{{y:.3f}}<br>%{{customdata[1]}}<extra></extra>",
        )  # fmt: skip
        described.append(f"ResNet-{depth}, {space.labels[axis]}: {member} {_describe_ends(levels)}")
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1]).update_yaxes(title_text="weight", col=1)
    figure.update_xaxes(title_text="B (samples)", row=len(depths))
    return finish_figure(
        figure, groups, title=f"How much of each {space.noun} the networks use, against the statistics batch",
        subtitle=f"{AVERAGED} {format_bars(confidence)}.", alt=f"{'; '.join(described)}.",
    )  # fmt: skip


def draw_share_by_setting(
    weights: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace, setting: str, confidence: float
) -> go.Figure:
    """Means of the switch weights over layers by level of `setting`: one row of panels per role, one column per axis.

    weights: rows of one epoch of each trial, of backbones and heads.
    """
    shares, groups = _compute_shares(weights, trials, "role", setting), TrialGroups()
    roles = sorted(shares["role"].unique(), key=lambda role: role != BACKBONE)
    levels = {role: sort_levels(shares[shares["role"].eq(role)][setting]) for role in roles}
    members = [name for name in space.member_names if name in set(shares["normalizer"])]
    heights = [10 + (14 + 10 * len(members)) * len(levels[role]) for role in roles]
    figure = build_axis_panels(heights, space, gap=12, labels=[role.replace("_", " ") for role in roles])
    for (role, axis, member), group in iterate_groups(shares, "role", "statistic", "normalizer"):
        shift = 0.22 * (members.index(member) - (len(members) - 1) / 2)
        items = _estimate_levels(group, setting, confidence)
        figure.add_scatter(
            x=_round(items), y=[round(levels[role].index(item.level) + shift, 4) for item in items],
            error_x=build_error_bars(item.estimate for item in items), mode="markers", row=roles.index(role) + 1,
            col=space.axis_names.index(axis) + 1, **choose_style(str(member), colours=space.colours),
            customdata=[
                [groups.number(item.rows), str(item.level), format_interval(item.estimate)] for item in items
            ],
            hovertemplate=f"{member}, {role} of %{{customdata[1]}}: %{{x:.3f}}<br>%{{customdata[2]}}<extra></extra>",
        )  # fmt: skip
    for row, role in enumerate(roles, start=1):
        texts = [str(level).replace(" on ", "<br>on ") for level in levels[role]]
        figure.update_yaxes(range=[len(texts) - 0.5, -0.5], zeroline=False, row=row, tickvals=list(range(len(texts))),
                            ticktext=texts)  # fmt: skip
    figure.update_xaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    figure.update_xaxes(title_text="weight", row=len(roles))
    return finish_figure(
        figure, groups, title="What the networks chose by task and data set",
        subtitle=f"{AVERAGED} {format_bars(confidence)}.", alt=_describe_settings(shares, levels, space, setting),
    )  # fmt: skip


def draw_share_by_epoch(switch_epochs: pd.DataFrame, trials: pd.DataFrame, space: ChoiceSpace) -> go.Figure:
    """Means of switch weights over layers by epoch: one row per axis, columns for the smallest and the largest B."""
    network, groups = switch_epochs[switch_epochs["scope"].eq("network")], TrialGroups()
    figure, table, batches = build_epoch_panels(network, trials, [190] * len(space.axes))
    for (batch, axis, member), group in iterate_groups(table, "batch_size", "statistic", "normalizer"):
        row, style = space.axis_names.index(axis) + 1, choose_style(str(member), colours=space.colours)
        add_band(figure, group, "weight", groups.number(group["row"]), style, row=row, col=batches.index(batch) + 1)
        figure.update_yaxes(title_text=space.labels[axis], row=row, col=1)
    figure.update_yaxes(range=[0, 1], tickvals=[0, 0.5, 1])
    last = table[table["epoch"].eq(table.groupby("key")["epoch"].transform("max"))]
    means = last.groupby(["batch_size", "normalizer"], observed=True)["weight"].mean().round(2)
    described = "; ".join(f"{member} {weight:.2f} at B = {batch}" for (batch, member), weight in means.items())
    return finish_figure(
        figure, groups, title="How the choice is made: network means of the switch weights by epoch",
        subtitle="Median (line) and range (band) over replicates and all other factors. Epoch 0 is before training.",
        alt=f"Mean weights after the last epoch: {described}.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _LevelShare:
    """The mean share at a level, and the rows of the trials behind it."""

    level: Any
    estimate: Estimate
    rows: list[int]


def _compute_shares(weights: pd.DataFrame, trials: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Mean weights by the columns `by`, statistic, normalizer and replicate, with the rows of the trials in each.

    First a mean over the layers of each trial, then over the trials of a replicate.
    """
    selected = trials.rename_axis("row").reset_index()[["key", "row", "replicate", *set(by) - {"role"}]]
    table = weights[["key", "role", "statistic", "normalizer", "weight"]].merge(selected, on="key")
    columns = [*by, "statistic", "normalizer", "replicate"]
    by_trial = table.groupby([*columns, "row"], observed=True)["weight"].mean().reset_index()
    by_replicate = by_trial.groupby(columns, observed=True)
    shares: pd.DataFrame = by_replicate.agg(weight=("weight", "mean"), rows=("row", tuple)).reset_index()
    return shares


def _estimate_levels(shares: pd.DataFrame, column: str, confidence: float) -> list[_LevelShare]:
    """The mean over replicates at each level of a column, with its interval."""
    return [
        _LevelShare(
            level=level, estimate=replicate_interval(part["weight"].to_numpy(), confidence),
            rows=[row for rows in part["rows"] for row in rows],
        )
        for level, part in iterate_groups(shares, column)
    ]  # fmt: skip


def _round(items: Iterable[_LevelShare]) -> list[float]:
    return [round(item.estimate.value or 0.0, 5) for item in items]


def _describe_ends(levels: list[_LevelShare]) -> str:
    """The shares at the smallest and the largest B."""
    ends = levels[:1] if len(levels) == 1 else [levels[0], levels[-1]]
    return ", ".join(f"{format_number(item.estimate.value or 0, 2)} at B = {item.level}" for item in ends)


def _describe_settings(shares: pd.DataFrame, levels: dict[str, list[Any]], space: ChoiceSpace, setting: str) -> str:
    """Mean weights of each role at each level."""
    described = []
    for role, names in levels.items():
        rows = shares[shares["role"].eq(role)]
        means = rows.groupby([setting, "normalizer"], observed=True)["weight"].mean().unstack("normalizer")
        means = means.reindex(columns=[name for name in space.member_names if name in means])
        described += [f"{role} of {name}: {format_weights(means.loc[name].dropna())}" for name in names]
    return f"Mean weights. {'; '.join(described)}."
