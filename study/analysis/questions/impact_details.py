"""What the answer on impacts says beside its ranking: trends, B against G x B, and how the choice is made in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.questions.answers import Effect, difference_effect, format_estimate, format_number, join_words
from study.analysis.records import BACKBONE, StudyRecords
from study.analysis.statistics.dynamics import SETTLED, network_dynamics
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
from study.analysis.statistics.measures import Measure
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.analysis.statistics.trends import (
    AXES,
    Axis,
    axis_slopes,
    batch_trends,
    leading_axis,
    network_means,
    rank_trends,
    tracked_shares,
)

CHANGES = ("convergence", "flips")  # of the dynamics, those that are compared between levels
BATCH_AXES = ("batch_size", "chunks", "fixed_gradient_batch")  # the factors that set B and G x B

Findings = tuple[list[Effect], list[str]]


def find_trends(records: StudyRecords, trials: pd.DataFrame) -> Findings:
    """Effects and sentences on how the switch weights run. `trials`: the planned ones of one norm and pool."""
    switch = records.switch[records.switch["key"].isin(trials["key"][trials["state"].eq("done")])]
    if switch.empty:
        return [], []
    found = [
        _inside_networks(records, switch, trials),
        _with_batch(records, switch, trials),
        _tracked_share(records, switch, trials),
    ]
    return [effect for effects, _ in found for effect in effects], [text for _, texts in found for text in texts]


def find_dynamics(records: StudyRecords, trials: pd.DataFrame) -> Findings:
    """Effects and sentences on when layers settle and how often their largest weight changes. `trials`: as above."""
    if not (trials["state"].eq("done") & trials["key"].isin(list(records.profiles))).any():
        return [], []
    table, confidence = network_dynamics(records.weights, BACKBONE, records.space), records.study.analysis.confidence
    block = select_block(trials, table)
    if not block.trials.size:
        return [], ["Finished runs have one recorded epoch, which says nothing of how the choice is made in time."]
    means = block.values.mean(axis=0)
    effects = [
        _row(records.measures[number], records.space.labels[statistic], values, block.trials, len(trials), confidence)
        for (number, statistic), values in zip(_pairs(table), means.T, strict=True)
    ]
    changes = {number: _changes(records, trials, number, table) for number in CHANGES}
    rows = [row for each in changes.values() for row in each]
    return [*effects, *rows], _dynamics_sentences(effects, changes, confidence)


# ----------------------------------------------------------------------------------- depth, receptive field, B


def _inside_networks(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Findings:
    """Trends over the layers of a network."""
    confidence, effects, sentences = records.study.analysis.confidence, [], []
    for measure, place, words in (
        ("trend_depth", "depth_fraction", "depth inside a network"),
        ("trend_receptive_field", "receptive_field", "receptive field"),
    ):
        table = rank_trends(switch, place)
        block = select_block(trials, table)
        rho = block.values.mean(axis=0)
        p_values = adjust_holm([mean_p_value(column) for column in rho.T])
        rows = _trend_rows(records, measure, table, rho, p_values, block.trials, len(trials))
        effects += rows
        sentences += _trend_sentences(words, rows, confidence)
    alike = rank_trends(switch, "receptive_field", "depth_fraction").to_numpy()
    if alike.size:
        sentences.append(f"The two have a rank correlation of {format_number(np.nanmean(alike), 2)} inside a network.")
    return effects, sentences


def _with_batch(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Findings:
    """Trends with B, over cells that agree in everything else."""
    factors, confidence = records.study.factors, records.study.analysis.confidence
    table = network_means(switch)
    block = select_block(trials, table)
    groups = cell_numbers(block.cells, [name for name in factors if name != "batch_size"]).to_numpy()
    batches = block.cells["batch_size"].to_numpy(dtype=float)
    rows, levels = np.unique(groups), np.unique(batches)
    if len(levels) < 2:
        return [], ["Finished runs have one B, so there is no trend with B."] * len(levels)
    grid = np.full((len(rows), len(levels)), -1)
    grid[np.searchsorted(rows, groups), np.searchsorted(levels, batches)] = np.arange(len(groups))
    kept, columns = complete_block(grid >= 0)
    if len(columns) < 2:
        return [], []
    cells = grid[np.ix_(kept, columns)]  # (group, level)
    values = block.values[cells].mean(axis=0).swapaxes(0, 1)  # (replicate, level, number)
    slopes, p_values = batch_trends(values, levels[columns])
    effects = _trend_rows(records, "trend_batch", table, slopes, p_values, block.trials[cells.ravel()], len(trials))
    return effects, _trend_sentences("B", effects, confidence)


def _trend_rows(
    records: StudyRecords, measure: str, table: pd.DataFrame, values: Floats, p_values: Sequence[float | None],
    used: Numbers, n_planned: int,
) -> list[Effect]:  # fmt: skip
    """A row a weight. values: (replicate, number), numbers as the columns of the table."""
    confidence, targets = records.study.analysis.confidence, {axis.name: axis.target for axis in records.space.axes}
    return [
        _row(
            records.measures[measure],
            f"{normalizer} of {targets[statistic]}",
            column,
            used,
            n_planned,
            confidence,
            p_value,
        )
        for (statistic, normalizer), column, p_value in zip(_pairs(table), values.T, p_values, strict=True)
        if column.size
    ]


def _trend_sentences(words: str, effects: Sequence[Effect], confidence: float) -> list[str]:
    """Which weights rise and which fall; the numbers are in the table of effects."""
    if not effects:
        return []
    if effects[0].estimate.n < 2:
        return [f"With {words}, nothing can be said of trends from one replicate."]
    ways: dict[str, list[str]] = {"the weight rises": [], "falls": [], "shows no trend": []}
    for effect in effects:
        shown = effect.p_value is not None and effect.p_value < 1 - confidence
        way = "shows no trend" if not shown else "the weight rises" if (effect.estimate.value or 0) > 0 else "falls"
        ways[way].append(effect.comparison)
    said = [f"{way} for {join_words(names)}" for way, names in ways.items() if names]
    return [f"With {words}, {join_words(said)} (adjusted p below {1 - confidence:.2g})."]


# ---------------------------------------------------------------------------------------------- share of the tracked member


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


def _tracked_share(records: StudyRecords, switch: pd.DataFrame, trials: pd.DataFrame) -> Findings:
    """How the share of the tracked member moves with B, and whether it follows B or the gradient batch."""
    member, label = records.space.tracked
    batches = trials["statistics_batch"].nunique(), trials["gradient_batch"].nunique()
    if batches == (1, 1):
        return [], []
    if not switch["normalizer"].eq(member).any():
        return [], [f"{records.reference_norm} has no {member} in its pool, so there is no {label} share to follow B."]
    differences = compare_tracked_shares(records, switch, trials)
    effects = [
        difference_effect(records.measures[f"{member}_share{suffix}"], f"B {item.reference} - B {item.other}", item)
        for suffix, item in zip(_suffixes(records), differences, strict=False)
    ]
    sentences = _share_sentences(records, differences)
    more_effects, more_sentences = _follows(
        records, select_block(trials, tracked_shares(switch, records.space)), len(trials)
    )
    return [*effects, *more_effects], [*sentences, *more_sentences]


def _share_sentences(records: StudyRecords, shares: Sequence[PairedDifference]) -> list[str]:
    if not shares or shares[0].estimate.value is None:
        return []
    confidence = records.study.analysis.confidence
    whole, *others = (format_estimate(item.estimate, confidence, sign=True) for item in shares)
    each = ", ".join(f"{axis.label} {said}" for axis, said in zip(records.space.axes, others, strict=True))
    levels = f"from B = {shares[0].other} to B = {shares[0].reference}"
    return [f"The {records.space.tracked[1]} share changes by {whole} {levels}: {each}."]


def _follows(records: StudyRecords, block: Block, n_planned: int) -> Findings:
    """Whether the share of the tracked member follows B or G x B. Block: its shares over all axes, and of each."""
    confidence = records.study.analysis.confidence
    others = [name for name in records.study.factors if name not in BATCH_AXES]
    found = [axis_slopes(block.cells, others, block.values[:, :, number]) for number in range(block.values.shape[2])]
    effects = [
        _row(records.measures[f"share_slope{suffix}"], comparison, values, block.trials, n_planned, confidence)
        for suffix, slopes in zip(_suffixes(records), found, strict=True)
        if slopes is not None
        for comparison, values in zip(("B at equal G x B", "G x B at equal B"), slopes, strict=True)
    ]
    if found[0] is None:
        return [], [_say_inseparable(records.space.tracked[1], block.cells)]
    return effects, [_say_followed(records.space.tracked[1], found[0], confidence), *_company(records)]


def _say_inseparable(label: str, cells: pd.DataFrame) -> str:
    """Why a study does not tell B and G x B apart, and which study does."""
    if cells.empty:
        return "No cell has a result in enough replicates to tell B and G x B apart."
    b, gradient = (cells[name].nunique() for name in ("statistics_batch", "gradient_batch"))
    reason = "where cells agree in all else, the two do not vary apart"
    if gradient == 1:
        reason = "G x B is the same in all cells"
    elif b == 1:
        reason = "B is the same in all cells"
    return (
        f"Whether the {label} share follows B or G x B cannot be told from this study: {reason}; study batch_axes can."
    )


def _say_followed(label: str, slopes: Floats, confidence: float) -> str:
    """The verdict on the two axes, its numbers and its rule. slopes: (axis, replicate)."""
    each: dict[Axis, Floats] = {"B": slopes[0], "G x B": slopes[1]}
    estimates = {axis: replicate_interval(values, confidence) for axis, values in each.items()}
    moves = {
        axis: f"{'rises' if item.above(0) else 'falls'} with {axis}"
        for axis, item in estimates.items()
        if item.above(0) or item.below(0)
    }
    leader, verdict = leading_axis(each, confidence), "whether it follows B or G x B cannot be said yet"
    if leader:
        other = AXES[1 - AXES.index(leader)]
        rest = f", more than it {moves[other]}" if other in moves else f" and not with {other}"
        verdict = f"it {moves[leader]}{rest}"
    elif moves:
        verdict = f"it {join_words(moves.values())}, but which of the two it follows more cannot be said yet"
    b, gradient = (format_estimate(item, confidence, sign=True) for item in estimates.values())
    return (
        f"{label} share, B against G x B: {verdict}. A doubling of B at equal G x B changes it by {b}, a doubling of G x B "
        f"at equal B by {gradient}. (Rule: least squares in each replicate; one leads where the intervals of its slope,"
        " of its slope minus the other's, and of the sum of both lie on one side of 0.)"
    )


def _suffixes(records: StudyRecords) -> list[str]:
    """How the names of measures end: over all axes, and of each."""
    return ["", *(f"_{name}" for name in records.space.axis_names)]


def _company(records: StudyRecords) -> list[str]:
    """What else changes with G x B."""
    base = records.study.base
    moved = ["the learning rate"] * base.scale_learning_rate + ["the number of steps"] * (base.epoch_steps is None)
    if moved:
        return [f"G x B comes with {join_words(moved)} that the recipe gives it; in study batch_axes these are held."]
    return ["Learning rate and number of steps are the same at every G x B."]


# ---------------------------------------------------------------------------------------------- dynamics


def _changes(records: StudyRecords, trials: pd.DataFrame, number: str, table: pd.DataFrame) -> list[Effect]:
    """How a number of the dynamics, a mean over both statistics, changes between the ends of every factor, paired."""
    factors = list(records.study.factors)
    values = table[[(number, statistic) for statistic in records.space.axis_names]].mean(axis=1).rename(number)
    items = [
        (factor, paired_differences(
            trials.join(values, on="key"), factors=factors, factor=factor, reference=reference,
            other=other, metric=number, confidence=records.study.analysis.confidence,
        ))
        for factor in factors
        for reference, other in _ends([level for level in records.levels(factor) if level in trials[factor].tolist()])
    ]  # fmt: skip
    items = [(factor, item) for factor, item in items if item.n_pairs]
    adjusted = adjust_holm([mean_p_value(item.per_replicate) for _, item in items])
    return [
        replace(
            difference_effect(records.measures[f"{number}_change"], f"{factor} {item.reference} - {item.other}", item),
            p_value=p,
        )
        for (factor, item), p in zip(items, adjusted, strict=True)
    ]


def _ends(levels: Sequence[Any]) -> list[tuple[Any, Any]]:
    """What is compared: the largest number with the smallest, or every other level with the first."""
    if len(levels) > 1 and all(type(level) in (int, float) for level in levels):
        return [(max(levels), min(levels))]
    return [(level, levels[0]) for level in levels[1:]]


def _dynamics_sentences(
    effects: Sequence[Effect], changes: Mapping[str, Sequence[Effect]], confidence: float
) -> list[str]:
    settled, flips = (
        join_words(
            f"{format_estimate(item.estimate, confidence, digits=2)} for {item.comparison}"
            for item in effects
            if item.measure.name == measure
        )
        for measure in ("convergence", "flips")
    )
    sentences = [
        f"Layers settle, to within {SETTLED:g} of their last weights, after this part of training: {settled}.",
        f"The largest weight of a layer becomes another so many times: {flips}.",
    ]
    beginnings = ("Layers settle at another time", "The largest weight changes more or less often")
    for words, rows in zip(beginnings, changes.values(), strict=True):
        shown = [
            f"{row.comparison} ({format_estimate(row.estimate, confidence, digits=2, sign=True)})"
            for row in rows
            if row.p_value is not None and row.p_value < 1 - confidence
        ]
        sentences += [f"{words} with {join_words(shown)}."] if shown else []
    return sentences


# -------------------------------------------------------------------------------------------------- rows


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of a table that has two words for each."""
    return [(str(first), str(second)) for first, second in table.columns.to_flat_index()]


def _row(
    measure: Measure, comparison: str, values: Floats, used: Numbers, n_planned: int, confidence: float,
    p_value: float | None = None,
) -> Effect:  # fmt: skip
    """A number that has a value a replicate. used: rows of the trial table, of `n_planned`."""
    return Effect(
        measure=measure, comparison=comparison, estimate=replicate_interval(values, confidence),
        n_pairs=used.size, n_pairs_planned=n_planned, per_replicate=values.tolist(), p_value=p_value,
        trials=sorted(used.ravel().tolist()),
    )  # fmt: skip
