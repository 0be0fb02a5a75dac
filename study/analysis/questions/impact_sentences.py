"""Sentences on details of question 2: places, trends, B against G x B, and the choice over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.records import StudyRecords
from study.analysis.statistics.dynamics import SETTLED
from study.analysis.statistics.intervals import Estimate, Floats
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.statistics.trends import AXES, BatchAxis
from study.analysis.wording import format_estimate, format_number, join_words
from study.config.schema import StudyConfig


def format_places(
    records: StudyRecords, estimate: Estimate, relative: Estimate, shares: Mapping[str, Floats]
) -> str:  # fmt: skip
    """How far places lie apart, and the share of the tracked member at each. shares: (axis,), by place."""
    label = records.space.tracked[1]
    each = "; ".join(
        f"{axis.label} {', '.join(f'{place} {format_number(share[number], 2)}' for place, share in shares.items())}"
        for number, axis in enumerate(records.space.axes)
    )
    seeds = f", {format_number(relative.value, 1)} seed distances" if relative.value is not None else ""
    number = format_estimate(estimate, records.confidence)
    margin = records.margin("effect")
    says = (
        f"moves the choice by more than {margin:g}" if estimate.above(margin)
        else f"does not move the choice by more than {margin:g}" if estimate.below(margin)
        else f"cannot be said to move the choice by more than {margin:g}"
    )  # fmt: skip
    return f"Inside a network, the place in a block {says}: {number}{seeds}. {label} share by place: {each}."


def format_trend(
    quantity: str, rows: Sequence[Effect], confidence: float, changes: Sequence[Effect] = ()
) -> list[str]:  # fmt: skip
    """Which weights rise and which fall with a quantity ("B"); the numbers are in the table.

    changes: those between the ends of the quantity, row by row, without which a trend has no direction.
    """
    if not rows:
        return []
    if rows[0].estimate.n < 2:
        return [f"With {quantity}, nothing can be said of trends from one replicate."]
    names: dict[str, list[str]] = {"rises": [], "falls": [], "changes in no clear direction": [], "shows no trend": []}
    for row, change in zip(rows, changes or rows, strict=True):
        way, whole = (_find_way(each, confidence) for each in (row, change))
        names[way if way in (whole, "shows no trend") else "changes in no clear direction"].append(row.comparison)
    said = [f"{way} for {join_words(each)}" for way, each in names.items() if each]
    rule = f"a trend has an adjusted p below {1 - confidence:.2g}" + (
        f", and a direction where the change from the smallest to the largest {quantity} agrees" if changes else ""
    )
    return [f"With {quantity}, the weight {join_words(said)} ({rule})."]


def _find_way(row: Effect, confidence: float) -> str:
    if row.p_value is None or row.p_value >= 1 - confidence:
        return "shows no trend"
    return "rises" if (row.estimate.value or 0) > 0 else "falls"


def format_trends_inside(trends: Mapping[str, Sequence[Effect]], confidence: float) -> list[str]:
    """`format_trend` for quantities inside a network, in one sentence where they agree. trends: rows by quantity."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for quantity, rows in trends.items():
        alike.setdefault(tuple(format_trend("", rows, confidence)), []).append(quantity)
    return [
        sentence
        for quantities in alike.values()
        for sentence in format_trend(
            f"{' and with '.join(quantities)}, among layers of the same place", trends[quantities[0]], confidence
        )
    ]


def format_tracked_share(records: StudyRecords, shares: Sequence[PairedDifference]) -> list[str]:
    """How the share of the tracked member changes from the smallest to the largest B."""
    if not shares or shares[0].estimate.value is None:
        return []
    confidence = records.confidence
    whole, *others = (format_estimate(item.estimate, confidence, sign=True) for item in shares)
    each = ", ".join(f"{axis.label} {said}" for axis, said in zip(records.space.axes, others, strict=True))
    levels = f"from B = {shares[0].other} to B = {shares[0].reference}"
    return [f"The {records.space.tracked[1]} share changes by {whole} {levels}: {each}."]


def format_inseparable(label: str, cells: pd.DataFrame) -> str:
    """Why a study cannot separate B from G x B, and which study can."""
    if cells.empty:
        return "No cell has a result in enough replicates to separate B from G x B."
    b, gradient = (cells[name].nunique() for name in ("statistics_batch", "gradient_batch"))
    reason = "where cells agree in everything else, the two do not vary independently"
    if gradient == 1:
        reason = "G x B is the same in all cells"
    elif b == 1:
        reason = "B is the same in all cells"
    return f"This study cannot say whether the {label} share follows B or G x B: {reason}; study batch_axes can."


def format_followed(label: str, slopes: Sequence[Estimate], leader: BatchAxis | None, confidence: float) -> str:
    """Which of B and G x B the share follows, with numbers and rule. slopes: of B and of G x B."""
    estimates = dict(zip(AXES, slopes, strict=True))
    moves = {
        axis: f"{'rises' if item.above(0) else 'falls'} with {axis}"
        for axis, item in estimates.items()
        if item.above(0) or item.below(0)
    }
    verdict = "whether it follows B or G x B cannot be said yet"
    if leader:
        other = AXES[1 - AXES.index(leader)]
        rest = f", more than it {moves[other]}" if other in moves else f" and not with {other}"
        verdict = f"it {moves[leader]}{rest}"
    elif moves:
        verdict = f"it {join_words(moves.values())}, but which of the two it follows more cannot be said yet"
    b, gradient = (format_estimate(item, confidence, sign=True) for item in estimates.values())
    return (
        f"{label} share, B against G x B: {verdict}. A doubling of B at equal G x B changes it by {b}, a doubling of "
        f"G x B at equal B by {gradient}. (Rule: least squares over the means of cells; one leads where the intervals "
        "of its slope, of its slope minus the other's, and of the sum of both lie on one side of 0.)"
    )


def format_held_axes(study: StudyConfig) -> str:
    """What else changes with G x B."""
    moved = ["the learning rate"] * study.base.scale_learning_rate
    moved += ["the number of steps"] * (study.base.epoch_steps is None)
    if moved:
        return f"With G x B the recipe also changes {join_words(moved)}; the study batch_axes avoids this."
    return "Learning rate and number of steps are the same at every G x B."


def format_dynamics(effects: Sequence[Effect], changes: Mapping[str, Sequence[Effect]], confidence: float) -> list[str]:
    """When layers settle and how often their largest weight changes; `changes`: by factor, of either."""
    settled, flips = (
        join_words(
            f"{format_estimate(item.estimate, confidence, digits=2)} for {item.comparison}"
            for item in effects
            if item.measure.name == measure
        )
        for measure in ("convergence", "flips")
    )
    found = [
        f"Layers settle, to within {SETTLED:g} of their last weights, after this part of training: {settled}.",
        f"Number of times the largest weight of a layer changes: {flips}.",
    ]
    beginnings = ("Layers settle at another time", "The largest weight changes more or less often")
    for words, rows in zip(beginnings, changes.values(), strict=True):
        shown = [
            f"{row.comparison} ({format_estimate(row.estimate, confidence, digits=2, sign=True)})"
            for row in rows
            if row.p_value is not None and row.p_value < 1 - confidence
        ]
        found += [f"{words} with {join_words(shown)}."] if shown else []
    return found
