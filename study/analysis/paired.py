"""Paired differences: two levels of a factor at equal cell and equal replicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.statistics import Estimate, cell_numbers, complete_block, replicate_interval


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Reference minus other, paired at equal cell (every other factor) and equal replicate.

    `missing` counts the planned pairs without a number by the side and state that caused it ("bn diverged").
    `n_cells` are in the estimate; `n_cells_diverged` are not, for a run that diverged.
    """

    reference: object
    other: object
    estimate: Estimate
    per_replicate: tuple[float, ...]
    n_pairs: int
    n_pairs_planned: int
    n_cells: int
    n_cells_diverged: int
    n_cells_planned: int
    missing: dict[str, int]


def paired_differences(
    trials: pd.DataFrame,
    *,
    factors: Sequence[str],
    factor: str,
    reference: object,
    other: object,
    metric: str,
    confidence: float,
) -> PairedDifference:
    """The difference of `metric` between two levels of `factor`, averaged over cells inside each replicate.

    What varies in the interval: the replicate. The cells are those of the plan, not a sample of cells. Only
    cells that every counted replicate holds enter (`complete_block`), so replicates differ by seeds alone.
    `trials` has one row a planned trial: a column a factor, `replicate`, `state`, and `metric`.
    """
    cells = cell_numbers(trials, [name for name in factors if name != factor])
    done = trials["state"].eq("done")
    values = trials[metric].astype(float).where(done)
    states = trials["state"].mask(done & values.isna(), f"without {metric}")
    index = [cells.rename("cell"), trials["replicate"]]
    table = pd.DataFrame({"level": trials[factor], "value": values, "state": states}).set_index(index)
    first, second = (table[[item == level for item in table["level"]]] for level in (reference, other))
    planned = first.index.intersection(second.index)
    difference = first["value"].loc[planned] - second["value"].loc[planned]
    causes = _missing_causes(difference, {_say(factor, reference): first, _say(factor, other): second})
    grid = difference.unstack("replicate")
    rows, columns = complete_block(grid.notna().to_numpy())
    per_replicate = grid.to_numpy()[np.ix_(rows, columns)].mean(axis=0) if rows.size else np.empty(0)
    diverged = {cell for (cell, _), cause in causes.items() if "diverged" in cause} - set(grid.index[rows])
    return PairedDifference(
        reference=reference, other=other,
        estimate=replicate_interval(per_replicate, confidence), per_replicate=tuple(per_replicate.tolist()),
        n_pairs=rows.size * columns.size, n_pairs_planned=len(planned),
        n_cells=rows.size, n_cells_diverged=len(diverged), n_cells_planned=len(grid),
        missing=dict(sorted(Counter(causes.values()).items())),
    )  # fmt: skip


def _missing_causes(difference: pd.Series, sides: Mapping[str, pd.DataFrame]) -> dict[tuple[int, int], str]:
    """Why a pair (cell, replicate) has no difference: "sn planned and bn diverged"."""
    missing = difference.index[difference.isna()]
    states = {name: side[side["value"].isna()]["state"].to_dict() for name, side in sides.items()}
    return {
        pair: " and ".join(f"{name} {lost[pair]}" for name, lost in states.items() if pair in lost) for pair in missing
    }


def _say(factor: str, level: object) -> str:
    return level if isinstance(level, str) else f"{factor} {level!r}"
