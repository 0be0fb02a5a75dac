"""Details of question 2: trends with depth, receptive field and B, B against G x B, and the choice over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.questions import sentences
from study.analysis.questions.answers import Effect, difference_effect
from study.analysis.questions.factor_question import Details
from study.analysis.records import StudyRecords
from study.analysis.statistics.dynamics import network_dynamics
from study.analysis.statistics.intervals import (
    Block,
    Floats,
    Numbers,
    adjust_holm,
    cell_numbers,
    complete_block,
    mean_p_value,
    replicate_interval,
    select_block,
)
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.analysis.statistics.trends import axis_slopes, batch_trends, network_means, rank_trends, tracked_shares
from study.analysis.weight_tables import BACKBONE
from study.analysis.wording import format_number

CHANGES = ("convergence", "flips")  # the numbers of the dynamics that are compared between levels
BATCH_AXES = ("batch_size", "chunks", "fixed_gradient_batch")  # the factors that set B and G x B
NOTHING = Details(effects=[], sentences=[])


def find_trends(records: StudyRecords, trials: pd.DataFrame) -> Details:
    """How the switch weights change with depth, receptive field, B and G x B.

    trials: the planned trials of one norm and pool.
    """
    switch = records.switch[records.switch["key"].isin(trials["key"][trials["state"].eq("done")])]
    if switch.empty:
        return NOTHING
    return _join(
        _find_trends_inside(records, switch, trials),
        _find_batch_trends(records, switch, trials),
        _find_tracked_share(records, switch, trials),
    )


def find_dynamics(records: StudyRecords, trials: pd.DataFrame) -> Details:
    """When layers settle, and how often their largest weight changes; `trials` as in `find_trends`."""
    if not (trials["state"].eq("done") & trials["key"].isin(list(records.profiles))).any():
        return NOTHING
    table, confidence = network_dynamics(records.weights, BACKBONE, records.space), records.study.analysis.confidence
    block = select_block(trials, table)
    if not block.trials.size:
        return Details(effects=[], sentences=["Finished runs have one recorded epoch, so the choice has no history."])
    means = block.values.mean(axis=0)
    effects = [
        _replicate_row(records, number, records.space.labels[axis], values, block.trials, len(trials))
        for (number, axis), values in zip(_column_names(table), means.T, strict=True)
    ]
    changes = {number: _compare_dynamics(records, trials, number, table) for number in CHANGES}
    rows = [row for each in changes.values() for row in each]
    return Details(effects=[*effects, *rows], sentences=sentences.format_dynamics(effects, changes, confidence))


def _join(*parts: Details) -> Details:
    return Details(
        effects=[effect for part in parts for effect in part.effects],
        sentences=[sentence for part in parts for sentence in part.sentences],
    )


# ----------------------------------------------------------------------------------- depth, receptive field, B


def _find_trends_inside(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Details:
    """Trends over the layers of a network that have the same place."""
    confidence, parts = records.study.analysis.confidence, []
    for measure, position, quantity in (
        ("trend_depth", "depth_fraction", "depth inside a network, among layers of the same place"),
        ("trend_receptive_field", "receptive_field", "receptive field, among layers of the same place"),
    ):
        table = rank_trends(switch, position)
        block = select_block(trials, table)
        rho = block.values.mean(axis=0)
        p_values = adjust_holm([mean_p_value(column) for column in rho.T])
        rows = _trend_rows(records, measure, table, rho, p_values, block.trials, len(trials))
        parts.append(Details(effects=rows, sentences=sentences.format_trend(quantity, rows, confidence)))
    alike = rank_trends(switch, "receptive_field", "depth_fraction").to_numpy()
    if alike.size:
        said = (
            f"The two have a rank correlation of {format_number(np.nanmean(alike), 2)} among layers of the same place."
        )
        parts.append(Details(effects=[], sentences=[said]))
    return _join(*parts)


def _find_batch_trends(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Details:
    """Trends with B, over cells that agree in everything else."""
    factors, confidence = records.study.factors, records.study.analysis.confidence
    table = network_means(switch)
    block = select_block(trials, table)
    groups = cell_numbers(block.cells, [name for name in factors if name != "batch_size"]).to_numpy()
    batches = block.cells["batch_size"].to_numpy(dtype=float)
    rows, levels = np.unique(groups), np.unique(batches)
    if len(levels) < 2:
        return Details(effects=[], sentences=["Finished runs have one B, so there is no trend with B."] * len(levels))
    grid = np.full((len(rows), len(levels)), -1)
    grid[np.searchsorted(rows, groups), np.searchsorted(levels, batches)] = np.arange(len(groups))
    kept, columns = complete_block(grid >= 0)
    if len(columns) < 2:
        return NOTHING
    cells = grid[np.ix_(kept, columns)]  # (group, level)
    values = block.values[cells].mean(axis=0).swapaxes(0, 1)  # (replicate, level, number)
    slopes, p_values = batch_trends(values, levels[columns])
    effects = _trend_rows(records, "trend_batch", table, slopes, p_values, block.trials[cells.ravel()], len(trials))
    return Details(effects=effects, sentences=sentences.format_trend("B", effects, confidence))


def _trend_rows(
    records: StudyRecords, measure: str, table: pd.DataFrame, values: Floats, p_values: Sequence[float | None],
    used: Numbers, n_planned: int,
) -> list[Effect]:  # fmt: skip
    """One row per weight. values: (replicate, number), with a number for each column of the table."""
    targets = {axis.name: axis.target for axis in records.space.axes}
    return [
        _replicate_row(records, measure, f"{member} of {targets[axis]}", column, used, n_planned, p_value)
        for (axis, member), column, p_value in zip(_column_names(table), values.T, p_values, strict=True)
        if column.size
    ]


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
            other=levels[0], metric=str(name), confidence=records.study.analysis.confidence,
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
    block = select_block(trials, tracked_shares(switch, records.space))
    return _join(change, _compare_axes(records, block, len(trials)))


def _compare_axes(records: StudyRecords, block: Block, n_planned: int) -> Details:
    """Whether the share of the tracked member follows B or G x B. block: its shares over all axes, and of each."""
    label, confidence = records.space.tracked[1], records.study.analysis.confidence
    others = [name for name in records.study.factors if name not in BATCH_AXES]
    found = [axis_slopes(block.cells, others, block.values[:, :, number]) for number in range(block.values.shape[2])]
    if found[0] is None:
        return Details(effects=[], sentences=[sentences.format_inseparable(label, block.cells)])
    effects = [
        _replicate_row(records, f"share_slope{suffix}", comparison, values, block.trials, n_planned)
        for suffix, slopes in zip(_measure_suffixes(records), found, strict=True)
        if slopes is not None
        for comparison, values in zip(("B at equal G x B", "G x B at equal B"), slopes, strict=True)
    ]
    said = [sentences.format_followed(label, found[0], confidence), sentences.format_held_axes(records.study)]
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
            other=other, metric=number, confidence=records.study.analysis.confidence,
        ))
        for factor in factors
        for reference, other in _find_ends([
            level for level in records.levels(factor) if level in trials[factor].tolist()
        ])
    ]  # fmt: skip
    items = [(factor, item) for factor, item in items if item.n_pairs]
    adjusted = adjust_holm([mean_p_value(item.per_replicate) for _, item in items])
    measure = records.measures[f"{number}_change"]
    return [
        replace(difference_effect(measure, f"{factor} {item.reference} - {item.other}", item), p_value=p_value)
        for (factor, item), p_value in zip(items, adjusted, strict=True)
    ]


def _find_ends(levels: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The levels to compare: the largest number with the smallest, or every other level with the first."""
    if len(levels) > 1 and all(type(level) in (int, float) for level in levels):
        return [(max(levels), min(levels))]
    return [(level, levels[0]) for level in levels[1:]]


# ------------------------------------------------------------------------------------------------------- rows


def _column_names(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of a table whose columns have two levels."""
    return [(str(first), str(second)) for first, second in table.columns.to_flat_index()]


def _replicate_row(
    records: StudyRecords, measure: str, comparison: str, values: Floats, used: Numbers, n_planned: int,
    p_value: float | None = None,
) -> Effect:  # fmt: skip
    """A row for a number that has one value per replicate. used: rows of the trial table, of `n_planned`."""
    return Effect(
        measure=records.measures[measure], comparison=comparison,
        estimate=replicate_interval(values, records.study.analysis.confidence), n_pairs=used.size,
        n_pairs_planned=n_planned, per_replicate=values.tolist(), p_value=p_value, trials=sorted(used.ravel().tolist()),
    )  # fmt: skip
