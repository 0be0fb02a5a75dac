"""Paired differences: two levels of a factor at equal cell and equal replicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import (
    Estimate,
    bootstrap_interval,
    cell_numbers,
    complete_block,
    mean_p_value,
    replicate_interval,
)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Reference minus other, paired at equal cell (every other factor) and equal replicate.

    `missing` counts the planned pairs without a number by the side and state that caused it ("bn diverged").
    `n_cells` are in the estimate; `n_cells_diverged` are not, for a run that diverged; `cells_missing` names all that
    are not, with their pairs that lack a number. `bootstrap`: see `bootstrap_interval`. `probability`: the share of
    pairs above 0, ties half. Of pairs, as their runs share seeds: rliable's takes every run of one side with every run
    of the other. In a complete block the mean over cells is that over pairs. `p_value`: two-sided, of no difference,
    not adjusted.
    `trials` are the rows of the pairs. `censored` of them never reached a target.
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
    cells_missing: dict[str, int] = field(default_factory=dict)
    bootstrap: tuple[float, float] | None = None
    probability: float | None = None
    p_value: float | None = None
    trials: tuple[int, ...] = ()
    censored: int = 0


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
    others = [name for name in factors if name != factor]
    cells = cell_numbers(trials, others)
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
    block = grid.iloc[rows, columns]
    per_replicate = block.to_numpy().mean(axis=0) if rows.size else np.empty(0)
    compared = cells.isin(block.index) & trials["replicate"].isin(block.columns)
    compared &= np.array([level in (reference, other) for level in trials[factor]], dtype=bool)
    diverged = {cell for (cell, _), cause in causes.items() if "diverged" in cause} - set(grid.index[rows])
    return PairedDifference(
        reference=reference, other=other,
        estimate=replicate_interval(per_replicate, confidence), per_replicate=tuple(per_replicate.tolist()),
        n_pairs=rows.size * columns.size, n_pairs_planned=len(planned),
        n_cells=rows.size, n_cells_diverged=len(diverged), n_cells_planned=len(grid),
        missing=dict(sorted(Counter(causes.values()).items())),
        cells_missing=_name_cells(trials[others], cells, grid.isna().sum(axis=1).drop(block.index)),
        bootstrap=bootstrap_interval(per_replicate, confidence), p_value=mean_p_value(per_replicate),
        probability=float(np.mean((np.sign(block) + 1) / 2)) if rows.size else None,
        trials=tuple(trials.index[compared].tolist()),
    )  # fmt: skip


def _missing_causes(difference: pd.Series, sides: Mapping[str, pd.DataFrame]) -> dict[tuple[int, int], str]:
    """Why a pair (cell, replicate) has no difference: "sn planned and bn diverged"."""
    missing = difference.index[difference.isna()]
    if missing.empty:
        return {}
    states = {name: side[side["value"].isna()]["state"].to_dict() for name, side in sides.items()}
    return {
        pair: " and ".join(f"{name} {lost[pair]}" for name, lost in states.items() if pair in lost) for pair in missing
    }


def _name_cells(levels: pd.DataFrame, cells: pd.Series, counts: pd.Series) -> dict[str, int]:
    """Counts of some cells by their levels of the factors that vary: {"B = 2, depth = 8": 3}."""
    if counts.empty:
        return {}
    first = levels[~cells.duplicated()].set_index(cells[~cells.duplicated()])
    varied = {name: "B" if name == "batch_size" else name for name in levels if first[name].map(repr).nunique() > 1}
    rows = [first.loc[cell, list(varied)].to_dict() for cell in counts.index]
    names = [", ".join(f"{varied[name]} = {level}" for name, level in row.items()) for row in rows]
    return dict(zip(names, counts.tolist(), strict=True))


def _say(factor: str, level: object) -> str:
    return level if isinstance(level, str) else f"{factor} {level!r}"
