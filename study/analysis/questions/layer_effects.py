"""Which layers each factor moves: its displacement at every position, with a false discovery rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import ALL_LEVELS, Choices
from study.analysis.questions.factor_rows import factor_row
from study.analysis.statistics.displacement import displacement, displacement_p_values
from study.analysis.statistics.distances import JENSEN_SHANNON, Distance
from study.analysis.statistics.intervals import Estimate, Floats
from study.analysis.statistics.moments import CellDistances, measure_contrasts
from study.analysis.wording import format_number


def layer_rows(choices: Choices, confidence: float) -> list[Effect]:
    """The displacement of every factor at every position, comparison by comparison, in the order of positions.

    p: one-sided, that it is not above 0, adjusted for all factors and positions by Benjamini and Hochberg (1995).
    """
    cells, rows = CellDistances(measure_positions(choices)), []
    for name, contrasts in choices.comparisons.items():
        moments = measure_contrasts(cells, contrasts)
        if not moments.n_contrasts or not choices.profiles.positions:
            continue
        row = factor_row(choices, "effect_layer", name, [name], Estimate())
        p_values = displacement_p_values(moments)
        rows += [
            replace(
                row, comparison=f"{name}, {position}", estimate=displacement(moments.select_axis(number), confidence),
                p_value=float(p_values[number]) if np.isfinite(p_values[number]) else None,
            )
            for number, position in enumerate(choices.profiles.positions)
        ]  # fmt: skip
    return adjust_false_discoveries(rows)


def measure_positions(choices: Choices, distance: Distance = JENSEN_SHANNON) -> Floats:
    """Squared distances (cell, replicate, cell, replicate, position), means over axes; NaN for missing networks."""
    axes, positions, members = choices.values.shape[2:]
    apart = replace(choices, values=choices.values.reshape(*choices.values.shape[:2], axes * positions, 1, members))
    squared = apart.measure(distance).reshape(*2 * choices.values.shape[:2], axes, positions)
    return np.asarray(squared.mean(axis=-2))


def adjust_false_discoveries(rows: Sequence[Effect]) -> list[Effect]:
    """The rows with p values adjusted over all that have one."""
    p_values = [row.p_value for row in rows if row.p_value is not None]
    adjusted = iter(stats.false_discovery_control(p_values).tolist() if p_values else [])
    return [row if row.p_value is None else replace(row, p_value=next(adjusted)) for row in rows]


def format_layer_effects(rows: Sequence[Effect], factors: Sequence[str], confidence: float) -> list[str]:
    """How many positions each factor moves, and its largest and smallest displacement among all positions.

    rows: from `layer_rows`.
    """
    said = []
    for name in (factor + levels for factor in factors for levels in ("", ALL_LEVELS)):
        own = [row for row in rows if row.comparison.startswith(f"{name}, ") and row.p_value is not None]
        if not own:
            continue
        moved = [row for row in own if row.p_value is not None and row.p_value < 1 - confidence]
        ranked = sorted(own, key=lambda row: -(row.estimate.value or 0.0))
        ends = " and ".join(
            f"{word} {format_number(row.estimate.value or 0.0, 2)} at {row.comparison.removeprefix(f'{name}, ')}"
            for row, word in ((ranked[0], "largest"), (ranked[-1], "smallest"))
        )
        all_positions = f" (displacement among all {len(own)}: {ends})" if moved else ""
        said.append(f"{name} {len(moved)} of {len(own)}{all_positions}")
    if not said:
        return []
    return [
        f"Positions in the network that a factor moves, at a false discovery rate of {100 * (1 - confidence):.3g} %: "
        f"{'; '.join(said)}."
    ]
