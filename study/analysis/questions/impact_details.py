"""Details of question 2: trends with depth, receptive field and B, B against G x B, and the choice over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.questions import impact_sentences as sentences
from study.analysis.questions.answers import Effect, difference_effect
from study.analysis.questions.choices import collect_choices
from study.analysis.questions.factor_question import Details
from study.analysis.records import StudyRecords
from study.analysis.statistics.cell_means import compute_p_value, estimate_contrast
from study.analysis.statistics.contrasts import find_ends
from study.analysis.statistics.displacement import displacement, relative_displacement
from study.analysis.statistics.distinctness import place_distances
from study.analysis.statistics.dynamics import network_dynamics
from study.analysis.statistics.intervals import Floats, Grid, adjust_holm, build_grid
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.analysis.statistics.profiles import build_profiles
from study.analysis.statistics.trends import leading_axis, network_means, rank_trends, slope_weights, tracked_shares
from study.analysis.weight_tables import BACKBONE
from study.analysis.wording import format_number

CHANGES = ("convergence", "flips")  # the numbers of the dynamics that are compared between levels
BATCH_AXES = ("batch_size", "chunks", "fixed_gradient_batch")  # the factors that set B and G x B
NOTHING = Details()


def find_trends(records: StudyRecords, trials: pd.DataFrame) -> Details:
    """How the switch weights change with depth, receptive field, B and G x B.

    trials: the planned trials of one norm and pool.
    """
    switch = records.switch[records.switch["key"].isin(trials["key"][trials["state"].eq("done")])]
    if switch.empty:
        return NOTHING
    return Details.join(
        _find_trends_inside(records, switch, trials),
        _find_batch_trends(records, switch, trials),
        _find_tracked_share(records, switch, trials),
    )


def find_places(records: StudyRecords, trials: pd.DataFrame) -> Details:
    """How far the places in a block lie apart inside a network, and what layers choose at each."""
    switch = records.switch[records.switch["key"].isin(trials["key"][trials["state"].eq("done")])]
    choices = collect_choices(build_profiles(switch, records.space, "place"), trials, [], records.space)
    if not choices.present.any() or choices.values.shape[3] < 2:
        return NOTHING
    moments, used = place_distances(choices.values), choices.rows[choices.present]
    whole, relative = displacement(moments, records.confidence), relative_displacement(moments, records.confidence)
    row = Effect(
        measure=records.measures["effect_place"], comparison="places in a block", estimate=whole, n_pairs=used.size,
        n_pairs_planned=len(trials), trials=sorted(used.tolist()),
    )  # fmt: skip
    means = np.nanmean(choices.values, axis=(0, 1))[:, :, records.space.member_names.index(records.space.tracked[0])]
    shares = dict(zip(choices.profiles.positions, means.T, strict=True))
    return Details(effects=[row], sentences=[sentences.format_places(records, whole, relative, shares)])


def find_dynamics(records: StudyRecords, trials: pd.DataFrame) -> Details:
    """When layers settle, and how often their largest weight changes; `trials` as in `find_trends`."""
    if not (trials["state"].eq("done") & trials["key"].isin(list(records.profiles))).any():
        return NOTHING
    table, confidence = network_dynamics(records.weights, BACKBONE, records.space), records.confidence
    grid = build_grid(trials, table)
    if not grid.trials:
        return Details(sentences=["Finished runs have one recorded epoch, so the choice has no history."])
    effects = [
        _mean_row(records, number, records.space.labels[axis], grid, column, len(trials))
        for column, (number, axis) in enumerate(_column_names(table))
    ]
    changes = {number: _compare_dynamics(records, trials, number, table) for number in CHANGES}
    rows = [row for each in changes.values() for row in each]
    return Details(effects=[*effects, *rows], sentences=sentences.format_dynamics(effects, changes, confidence))


# ----------------------------------------------------------------------------------- depth, receptive field, B


def _find_trends_inside(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Details:
    """Trends over the layers of a network that have the same place."""
    confidence, trends = records.confidence, {}
    for measure, position, quantity in (
        ("trend_depth", "depth_fraction", "depth inside a network"),
        ("trend_receptive_field", "receptive_field", "receptive field"),
    ):
        table = rank_trends(switch, position)
        grid = build_grid(trials, table)
        trends[quantity] = _adjust([
            _mean_row(records, measure, name, grid, column, len(trials))
            for column, name in enumerate(_name_weights(records, table))
        ] if grid.trials else [], confidence)  # fmt: skip
    said = sentences.format_trends_inside(trends, confidence)
    alike = rank_trends(switch, "receptive_field", "depth_fraction").to_numpy()
    if alike.size:
        correlation = format_number(np.nanmean(alike), 2)
        said.append(f"The two have a rank correlation of {correlation} among layers of the same place.")
    return Details(effects=[row for rows in trends.values() for row in rows], sentences=said)


def _find_batch_trends(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Details:
    """Trends with B, over cells that agree in everything else, and the change from its smallest to its largest level.

    Without the latter, a level in the middle that is unlike all others would make a trend.
    """
    confidence, table = records.confidence, network_means(switch)
    grid = build_grid(trials, table)
    if grid.cells["batch_size"].nunique() < 2:
        planned = records.from_scratch["batch_size"].nunique()
        why = "at B = 1 layers cannot choose bn" if planned > 1 else "finished runs have one B"
        return Details(sentences=[f"There is no trend with B: {why}."] * bool(len(grid.cells)))
    others = [name for name in records.study.factors if name != "batch_size"]
    weights = slope_weights(grid.cells, others, ["batch_size"])
    if weights is None:
        return NOTHING
    rows, changes = (
        _adjust([
            _contrast_row(records, measure, name, grid, column, each, len(trials))
            for column, name in enumerate(_name_weights(records, table))
        ], confidence) if each is not None else []
        for measure, each in (("trend_batch", weights[0]), ("trend_batch_ends", _compare_ends(grid.cells, others)))
    )  # fmt: skip
    return Details(effects=[*rows, *changes], sentences=sentences.format_trend("B", rows, confidence, changes))


def _compare_ends(cells: pd.DataFrame, others: Sequence[str]) -> Floats | None:
    """Weights of cells (cell,) whose sum with the cells' means is the change from the smallest to the largest B.

    None without levels between the two, and where no cells of both agree in everything else.
    """
    doublings = np.log2(cells["batch_size"].to_numpy(dtype=float))
    ends = np.isin(doublings, [doublings.min(), doublings.max()])
    slope = slope_weights(cells[ends], others, ["batch_size"])
    if ends.all() or slope is None:
        return None
    weights = np.zeros(len(cells))
    weights[ends] = slope[0] * np.ptp(doublings)
    return weights


def _name_weights(records: StudyRecords, table: pd.DataFrame) -> list[str]:
    """`bn of means`, for every column of a table of weights."""
    targets = {axis.name: axis.target for axis in records.space.axes}
    return [f"{member} of {targets[axis]}" for axis, member in _column_names(table)]


def _adjust(rows: Sequence[Effect], confidence: float) -> list[Effect]:
    """The rows with p values that each number is 0, adjusted by Holm for their number."""
    p_values = adjust_holm([compute_p_value(row.estimate, confidence) for row in rows])
    return [replace(row, p_value=p_value) for row, p_value in zip(rows, p_values, strict=True)]


# -------------------------------------------------------------------------------- share of the tracked member


def compare_tracked_shares(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> list[PairedDifference]:
    """The share of the tracked member at the largest B minus that at the smallest: over all axes, and of each."""
    levels = sorted(trials["batch_size"].unique())
    if "batch_size" not in records.study.factors or len(levels) < 2:
        return []
    shares = tracked_shares(switch, records.space)
    table = trials.join(shares, on="key")
    return [
        paired_differences(
            table, factors=list(records.study.factors), factor="batch_size", reference=levels[-1],
            other=levels[0], metric=str(name), confidence=records.confidence,
        )
        for name in shares
    ]  # fmt: skip


def _find_tracked_share(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Details:
    """How the share of the tracked member changes with B, and whether it follows B or the gradient batch."""
    member, label = records.space.tracked
    if (trials["statistics_batch"].nunique(), trials["gradient_batch"].nunique()) == (1, 1):
        return NOTHING
    if not switch["normalizer"].eq(member).any():
        said = f"{records.reference_norm} has no {member} in its pool, so there is no {label} share to follow B."
        return Details(effects=[], sentences=[said])
    differences = compare_tracked_shares(records, switch, trials)
    effects = [
        difference_effect(records.measures[f"{member}_share{suffix}"], f"B {item.reference} - B {item.other}", item)
        for suffix, item in zip(_measure_suffixes(records), differences, strict=False)
    ]
    change = Details(effects=effects, sentences=sentences.format_tracked_share(records, differences))
    grid = build_grid(trials, tracked_shares(switch, records.space))
    return Details.join(change, _compare_axes(records, grid, len(trials)))


def _compare_axes(records: StudyRecords, grid: Grid, n_planned: int) -> Details:
    """Whether the share of the tracked member follows B or G x B. grid: its shares over all axes, and of each."""
    label = records.space.tracked[1]
    others = [name for name in records.study.factors if name not in BATCH_AXES]
    weights = slope_weights(grid.cells, others, ["statistics_batch", "gradient_batch"]) if len(grid.cells) else None
    if weights is None:
        return Details(sentences=[sentences.format_inseparable(label, grid.cells)])
    effects = [
        _contrast_row(records, f"share_slope{suffix}", comparison, grid, column, each, n_planned)
        for column, suffix in enumerate(_measure_suffixes(records))
        for comparison, each in zip(("B at equal G x B", "G x B at equal B"), weights, strict=True)
    ]
    leader = leading_axis(grid.values[:, :, 0], weights, records.confidence)
    slopes = [effect.estimate for effect in effects[:2]]
    said = [
        sentences.format_followed(label, slopes, leader, records.confidence),
        sentences.format_held_axes(records.study),
    ]
    return Details(effects=effects, sentences=said)


def _measure_suffixes(records: StudyRecords) -> list[str]:
    """Suffixes of the measure names: for all axes together, and for each axis."""
    return ["", *(f"_{name}" for name in records.space.axis_names)]


# --------------------------------------------------------------------------------------------------- dynamics


def _compare_dynamics(records: StudyRecords, trials: pd.DataFrame, number: str, table: pd.DataFrame) -> list[Effect]:
    """How convergence or flips, averaged over axes, differs between the compared levels of each factor (paired)."""
    factors = list(records.study.factors)
    values = table[[(number, axis) for axis in records.space.axis_names]].mean(axis=1).rename(number)
    items = [
        (factor, paired_differences(
            trials.join(values, on="key"), factors=factors, factor=factor, reference=reference,
            other=other, metric=number, confidence=records.confidence,
        ))
        for factor in factors
        for reference, other in _list_comparisons([
            level for level in records.levels(factor) if level in trials[factor].tolist()
        ])
    ]  # fmt: skip
    items = [(factor, item) for factor, item in items if item.n_pairs]
    adjusted = adjust_holm([item.p_value for _, item in items])
    measure = records.measures[f"{number}_change"]
    return [
        replace(difference_effect(measure, f"{factor} {item.reference} - {item.other}", item), p_value=p_value)
        for (factor, item), p_value in zip(items, adjusted, strict=True)
    ]


def _list_comparisons(levels: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The levels to compare: the largest number with the smallest, or every other level with the first."""
    ends = find_ends(levels)
    return [(ends[1], ends[0])] if ends else [(level, levels[0]) for level in levels[1:]]


# ------------------------------------------------------------------------------------------------------- rows


def _column_names(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of a table whose columns have two levels."""
    return [(str(first), str(second)) for first, second in table.columns.to_flat_index()]


def _mean_row(
    records: StudyRecords, measure: str, comparison: str, grid: Grid, column: int, n_planned: int
) -> Effect:  # fmt: skip
    """A row for a number of networks, a mean over cells."""
    return _contrast_row(
        records, measure, comparison, grid, column, np.full(len(grid.cells), 1 / len(grid.cells)), n_planned
    )


def _contrast_row(
    records: StudyRecords, measure: str, comparison: str, grid: Grid, column: int, weights: Floats, n_planned: int
) -> Effect:  # fmt: skip
    """A row for a weighted sum of cells of one number. n_planned: number of planned trials."""
    values = grid.values[:, :, column]
    whole = np.isfinite(values).all(axis=0)
    return Effect(
        measure=records.measures[measure], comparison=comparison,
        estimate=estimate_contrast(values, weights, records.confidence), n_pairs=len(grid.trials),
        n_pairs_planned=n_planned, per_replicate=(weights @ values[:, whole]).tolist(), trials=grid.trials,
    )  # fmt: skip
