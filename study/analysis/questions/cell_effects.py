"""Whether a factor moves the choice alike in all cells: its displacement at each combination of the other factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import name_cell
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
    for factor, contrasts in choices.contrasts.items():
        if len(contrasts) < 2:
            continue
        row = factor_row(choices, "effect_cell", factor, [factor], Estimate())
        at = 1 - (1 - confidence) / len(contrasts)
        others = [name for name in choices.factors if name != factor]
        for contrast in contrasts:
            squared = distances.squared[contrast.cells][:, :, contrast.cells]
            alone = replace(contrast, cells=np.arange(len(contrast.cells)))
            estimate = displacement(measure_contrasts(CellDistances(squared), [alone]), at)
            used = choices.rows[contrast.cells][choices.present[contrast.cells]]
            where = name_cell(choices.cells.iloc[contrast.cells[0]], others)
            if estimate.value is not None:
                rows.append(replace(
                    row, comparison=f"{factor} at {where}", estimate=estimate, n_pairs=1, n_pairs_planned=1,
                    missing={}, trials=sorted(used.tolist()),
                ))  # fmt: skip
    return rows


def format_cell_effects(
    rows: Sequence[Effect], verdicts: Mapping[str, Verdict], margin: float, confidence: float
) -> list[str]:
    """The factors that move the choice further in one cell than in another, or only in single cells.

    rows: from `cell_rows`.
    """
    said = []
    for factor, verdict in verdicts.items():
        own = [row for row in rows if row.comparison.startswith(f"{factor} at ") and row.estimate.low is not None]
        if len(own) < 2:
            continue
        least, most = (find(own, key=lambda row: row.estimate.value or 0.0) for find in (min, max))
        differ = most.estimate.above(least.estimate.high or 0.0)
        if differ or (verdict != SUPPORTED and most.estimate.above(margin)):
            at = 1 - (1 - confidence) / len(own)
            numbers = " and ".join(
                f"by {format_estimate(row.estimate, at)}{row.comparison.removeprefix(factor)}" for row in (most, least)
            )
            said.append(f"Factor {factor} does not move the choice alike in all cells: {numbers}.")
    return said
