"""Paired differences: two levels of a factor at equal cell and equal replicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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

    missing: planned pairs without a number, counted by the side and state that caused it ("bn diverged").
    n_cells: cells in the estimate. n_cells_diverged: cells that are not in it because of a run that diverged.
    cells_missing: all cells that are not in it, by name, with their number of missing pairs.
    bootstrap: see `bootstrap_interval`. probability: the share of pairs above 0, ties counting half. (Pairs, because
    their runs share seeds: rliable compares every run of one side with every run of the other.)
    p_value: two-sided, of no difference, not adjusted. trials: rows of the trial table in the pairs.
    censored: how many of these trials never reached a target.
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
    trials: one row per planned trial; one column per factor, `replicate`, `state`, and `metric`.
    """
    others = [name for name in factors if name != factor]
    cells = cell_numbers(trials, others)
    first, second = (_select_level(trials, cells, factor, level, metric) for level in (reference, other))
    planned = first.index.intersection(second.index)
    difference = first["value"].loc[planned] - second["value"].loc[planned]
    causes = _find_missing_causes(
        difference, {_format_level(factor, reference): first, _format_level(factor, other): second}
    )
    grid = difference.unstack("replicate")
    rows, columns = complete_block(grid.notna().to_numpy())
    block = grid.iloc[rows, columns]
    per_replicate = block.to_numpy().mean(axis=0) if rows.size else np.empty(0)
    compared = cells.isin(block.index) & trials["replicate"].isin(block.columns)
    compared &= _has_level(trials, factor, reference) | _has_level(trials, factor, other)
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


def _select_level(trials: pd.DataFrame, cells: pd.Series, factor: str, level: object, metric: str) -> pd.DataFrame:
    """Value and state of the trials at a level of the factor, by (cell, replicate)."""
    done = trials["state"].eq("done")
    values = trials[metric].astype(float).where(done)
    states = trials["state"].mask(done & values.isna(), f"without {metric}")
    table = pd.DataFrame({"value": values, "state": states}).set_index([cells.rename("cell"), trials["replicate"]])
    selected: pd.DataFrame = table[_has_level(trials, factor, level)]
    return selected


def _has_level(trials: pd.DataFrame, factor: str, level: object) -> NDArray[np.bool_]:
    """Whether each trial is at the level; None is a level like any other."""
    return np.array([item == level for item in trials[factor]], dtype=bool)


def _find_missing_causes(difference: pd.Series, sides: Mapping[str, pd.DataFrame]) -> dict[tuple[int, int], str]:
    """Why a pair (cell, replicate) has no difference: "sn planned and bn diverged"."""
    missing = difference.index[difference.isna()]
    if missing.empty:
        return {}
    states = {name: side[side["value"].isna()]["state"].to_dict() for name, side in sides.items()}
    return {
        pair: " and ".join(f"{name} {lost[pair]}" for name, lost in states.items() if pair in lost) for pair in missing
    }


def _name_cells(levels: pd.DataFrame, cells: pd.Series, counts: pd.Series) -> dict[str, int]:
    """Counts by cell, with cells named by their levels of the factors that vary: {"B = 2, depth = 8": 3}."""
    if counts.empty:
        return {}
    first = levels[~cells.duplicated()].set_index(cells[~cells.duplicated()])
    varied = {name: "B" if name == "batch_size" else name for name in levels if first[name].map(repr).nunique() > 1}
    rows = [first.loc[cell, list(varied)].to_dict() for cell in counts.index]
    names = [", ".join(f"{varied[name]} = {level}" for name, level in row.items()) for row in rows]
    return dict(zip(names, counts.tolist(), strict=True))


def _format_level(factor: str, level: object) -> str:
    return level if isinstance(level, str) else f"{factor} {level!r}"
