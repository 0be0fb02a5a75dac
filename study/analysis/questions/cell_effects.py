"""Whether a factor moves the choice alike in all cells: its displacement at each combination of the other factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import ALL_LEVELS, Choices, name_cell
from study.analysis.questions.factor_effects import ChoiceDistances
from study.analysis.questions.factor_rows import factor_row
from study.analysis.questions.verdicts import SUPPORTED, Verdict
from study.analysis.statistics.displacement import displacement
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.moments import CellDistances, measure_contrasts
from study.analysis.wording import format_estimate


def cell_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """The displacement of every factor at each combination of the other factors that has results.

    The intervals of a factor together have the confidence (Bonferroni).
    """
    choices, rows = distances.choices, []
    for comparison, contrasts in choices.comparisons.items():
        if len(contrasts) < 2:
            continue
        factor = comparison.removesuffix(ALL_LEVELS)
        row = factor_row(choices, "effect_cell", comparison, [comparison], Estimate())
        at = _adjust_confidence(choices, factor, confidence)
        others = [name for name in choices.factors if name != factor]
        for contrast in contrasts:
            squared = distances.squared[contrast.cells][:, :, contrast.cells]
            alone = replace(contrast, cells=np.arange(len(contrast.cells)))
            estimate = displacement(measure_contrasts(CellDistances(squared), [alone]), at)
            used = choices.rows[contrast.cells][choices.present[contrast.cells]]
            where = name_cell(choices.cells.iloc[contrast.cells[0]], others)
            if estimate.value is not None:
                rows.append(replace(
                    row, comparison=f"{comparison} at {where}", estimate=estimate, n_pairs=1, n_pairs_planned=1,
                    missing={}, trials=sorted(used.tolist()),
                ))  # fmt: skip
    return rows


def format_cell_effects(
    distances: ChoiceDistances, rows: Sequence[Effect], verdicts: Mapping[str, Verdict], confidence: float
) -> list[str]:
    """The factors that move the choice further in one cell than in another, or only in single cells.

    rows: from `cell_rows`.
    """
    said = []
    for name in (factor + levels for factor in verdicts for levels in ("", ALL_LEVELS)):
        factor = name.removesuffix(ALL_LEVELS)
        own = [row for row in rows if row.comparison.startswith(f"{name} at ") and row.estimate.low is not None]
        if len(own) < 2:
            continue
        least, most = (find(own, key=lambda row: row.estimate.value or 0.0) for find in (min, max))
        differ = most.estimate.above(least.estimate.high or 0.0)
        if differ or (verdicts[factor] != SUPPORTED and most.estimate.above(distances.margin)):
            at = _adjust_confidence(distances.choices, factor, confidence)
            numbers = " and ".join(
                f"by {format_estimate(row.estimate, at)}{row.comparison.removeprefix(name)}" for row in (most, least)
            )
            said.append(f"Factor {name} does not move the choice alike in all cells: {numbers}.")
    return said


def _adjust_confidence(choices: Choices, factor: str, confidence: float) -> float:
    """The confidence of each interval of a factor in single cells."""
    return 1 - (1 - confidence) / sum(len(choices.comparisons.get(factor + levels, ())) for levels in ("", ALL_LEVELS))
