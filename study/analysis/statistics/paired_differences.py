"""Paired differences: two levels of a factor at equal cell and equal replicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from study.analysis.statistics.cell_means import (
    Interaction,
    adjust_replicates,
    compute_p_value,
    estimate_contrast,
    estimate_mean_of_cells,
    find_interaction,
)
from study.analysis.statistics.intervals import Estimate, Floats, bootstrap_interval, cell_numbers

DIVERGED = "diverged"
SURE_TO_DIVERGE = 5
"""Number of runs of which all diverged that shows that a norm diverges more often than not: 0.5 ** 5 is below 5 %."""


@dataclass(frozen=True, kw_only=True)
class CellDifference:
    """The difference in one cell, named by its levels of the factors that vary ("B = 2, depth = 8").

    estimate: its confidence is adjusted (Bonferroni) for the number of cells of the comparison, so all cells together
    keep the confidence. p_value: adjusted likewise. trials: rows of the trial table. n_at_chance: number of pairs in
    which a level counts with chance level.
    """

    name: str
    estimate: Estimate
    n_pairs: int
    n_pairs_planned: int
    p_value: float | None = None
    trials: tuple[int, ...] = ()
    n_at_chance: int = 0


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Reference minus other, paired at equal cell (every other factor) and equal replicate.

    estimate: the mean over cells of the mean over replicates, of the cells that have a pair. per_replicate: see
    `adjust_replicates`. missing: planned pairs without a number, counted by the side and state that caused it ("bn
    diverged"). n_cells: cells with a pair. cells: those cells. cells_missing: the cells that lack pairs, by name, with
    the number of pairs that they lack. empty_cells: names of the planned cells without any pair.
    worst, best: the estimate over all planned cells if every missing score of an empty cell were as bad for the
    reference as possible, and as good; only where there are empty cells, and for scores.
    reference_diverged, other_diverged: number of diverged runs of either level in the planned cells.
    reference_diverged_more, other_diverged_more: whether it diverged more often than the other in any cell.
    at_chance: by level, the cells in which every run of that level diverged, so that it counts with chance level.
    n_at_chance: number of pairs in these cells.
    without_chance: the estimate over the other cells; None where every cell at chance level has `SURE_TO_DIVERGE` runs.
    interaction: whether the difference depends on the cell; its `cell` is a number of `cells`.
    bootstrap: see `bootstrap_interval`. share_above: the share of pairs above 0, ties counting half. (Pairs, because
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
    missing: Mapping[str, int]
    cells: tuple[CellDifference, ...] = ()
    cells_missing: Mapping[str, int] = field(default_factory=dict)
    empty_cells: tuple[str, ...] = ()
    worst: Estimate | None = None
    best: Estimate | None = None
    reference_diverged: int = 0
    other_diverged: int = 0
    reference_diverged_more: bool = False
    other_diverged_more: bool = False
    at_chance: Mapping[object, Sequence[str]] = field(default_factory=dict)
    n_at_chance: int = 0
    without_chance: Estimate | None = None
    interaction: Interaction | None = None
    bootstrap: tuple[float, float] | None = None
    share_above: float | None = None
    p_value: float | None = None
    trials: tuple[int, ...] = ()
    censored: int = 0

    @property
    def scope(self) -> str:
        """` over 3 of 4 cells`: what the estimate is the mean of, where planned cells have no pair; else empty."""
        return f" over {self.n_cells} of {self.n_cells + len(self.empty_cells)} cells" if self.empty_cells else ""


def paired_differences(
    trials: pd.DataFrame,
    *,
    factors: Sequence[str],
    factor: str,
    reference: object,
    other: object,
    metric: str,
    confidence: float,
    chance: pd.Series | None = None,
) -> PairedDifference:
    """The difference of `metric` between two levels of `factor`: mean over cells of the mean over replicates.

    What varies in the interval: the replicate. The cells are those of the plan, not a sample of cells, and may have
    unequal numbers of replicates (`estimate_mean_of_cells`). A run that diverged has no number, and its pair is left
    out; but where every planned run of a level diverged in a cell, that level counts there with chance level.
    trials: one row per planned trial; one column per factor, `replicate`, `state`, and `metric`.
    chance: of scores, which lie between 0 and 1: the score of guessing, for each row of `trials`. None for other
    numbers, which have no such level.
    """
    others = [name for name in factors if name != factor]
    numbers = cell_numbers(trials, others)
    levels = {level: _select_level(trials, numbers, factor, level, metric, chance) for level in (reference, other)}
    first, second = levels[reference], levels[other]
    planned = first.index.intersection(second.index)
    first, second = first.loc[planned], second.loc[planned]
    difference = first["value"] - second["value"]
    at_chance = first["at_chance"] | second["at_chance"]
    pairs_at_chance = at_chance[difference.notna()]
    grid = difference.unstack("replicate")
    names = _name_cells(trials[others], numbers, grid.index)
    measured = grid[grid.notna().any(axis=1)]
    values = measured.to_numpy(dtype=float)
    rows = pd.DataFrame({"first": first["row"], "second": second["row"]})[difference.notna()]
    per_replicate = adjust_replicates(values)
    estimate = estimate_mean_of_cells(values, confidence)
    empty = grid.index.difference(measured.index, sort=False)
    worst, best = None, None
    if chance is not None and len(empty):
        worst, best = (
            _fill_empty(grid, first["value"].fillna(ends[0]) - second["value"].fillna(ends[1]), empty, confidence)
            for ends in ((0.0, 1.0), (1.0, 0.0))
        )
    causes = _count_missing_causes(
        difference, {_format_level(factor, reference): first, _format_level(factor, other): second}
    )
    diverged = [side["state"].eq(DIVERGED).groupby(level="cell").sum() for side in (first, second)]
    surplus = diverged[0] - diverged[1]  # by cell
    lacking = grid.isna().sum(axis=1)[lambda counts: counts > 0]
    return PairedDifference(
        reference=reference, other=other, estimate=estimate, per_replicate=tuple(per_replicate.tolist()),
        n_pairs=len(rows), n_pairs_planned=len(planned), n_cells=len(measured),
        missing=causes, cells=_estimate_cells(measured, grid, rows, pairs_at_chance, names, confidence),
        cells_missing={names[cell]: int(number) for cell, number in lacking.items()},
        empty_cells=tuple(names[cell] for cell in empty), worst=worst, best=best,
        reference_diverged=int(first["state"].eq(DIVERGED).sum()),
        other_diverged=int(second["state"].eq(DIVERGED).sum()),
        reference_diverged_more=bool((surplus > 0).any()), other_diverged_more=bool((surplus < 0).any()),
        at_chance={
            level: [names[cell] for cell in cells]
            for level, table in ((reference, first), (other, second))
            if (cells := table.index[table["at_chance"]].unique("cell").tolist())
        },
        n_at_chance=int(pairs_at_chance.sum()),
        without_chance=_leave_out_chance(measured, at_chance, confidence),
        interaction=find_interaction(values, confidence),
        bootstrap=bootstrap_interval(per_replicate, confidence), p_value=compute_p_value(estimate, confidence),
        share_above=float(((np.sign(difference.dropna()) + 1) / 2).mean()) if len(rows) else None,
        trials=tuple(sorted(rows.to_numpy().ravel().tolist())),
    )  # fmt: skip


def _select_level(
    trials: pd.DataFrame, cells: pd.Series, factor: str, level: object, metric: str, chance: pd.Series | None
) -> pd.DataFrame:
    """Value, state, row number, and whether it counts with chance level, of a level's trials by (cell, replicate)."""
    chosen = trials[np.array([item == level for item in trials[factor]], dtype=bool)]  # None is a level like any other
    cells = cells[chosen.index]
    done = chosen["state"].eq("done")
    values = chosen[metric].astype(float).where(done)
    states = chosen["state"].mask(done & values.isna(), f"without {metric}")
    at_chance = pd.Series(False, index=chosen.index)
    if chance is not None:
        at_chance = chosen["state"].eq(DIVERGED).groupby(cells).transform("all").astype(bool)
        values = values.where(~at_chance, chance[chosen.index])
    table = {"value": values, "state": states, "row": chosen.index, "at_chance": at_chance}
    selected: pd.DataFrame = pd.DataFrame(table).set_index([cells.rename("cell"), chosen["replicate"]])
    return selected


def _estimate_cells(
    measured: pd.DataFrame,
    grid: pd.DataFrame,
    rows: pd.DataFrame,
    pairs_at_chance: pd.Series,
    names: Mapping[int, str],
    confidence: float,
) -> tuple[CellDifference, ...]:
    """The difference in every cell that has a pair; none where the plan has a single cell."""
    if len(grid) < 2:
        return ()
    adjusted = 1 - (1 - confidence) / len(grid)
    found = []
    for cell, weights in zip(measured.index, np.eye(len(measured)), strict=True):
        estimate = estimate_contrast(measured.to_numpy(dtype=float), weights, adjusted)
        p_value = compute_p_value(estimate, adjusted)
        found.append(CellDifference(
            name=names[cell], estimate=estimate, n_pairs=int(measured.loc[cell].notna().sum()),
            n_pairs_planned=int(grid.shape[1]), p_value=None if p_value is None else min(1.0, p_value * len(grid)),
            trials=tuple(sorted(rows.loc[cell].to_numpy().ravel().tolist())),
            n_at_chance=int(pairs_at_chance.loc[cell].sum()),
        ))  # fmt: skip
    return tuple(found)


def _fill_empty(grid: pd.DataFrame, assumed: pd.Series, empty: pd.Index, confidence: float) -> Estimate:
    """The estimate over all planned cells if the differences in empty cells were the assumed ones."""
    values: Floats = grid.to_numpy(dtype=float)
    filled = np.where(grid.index.isin(empty)[:, None], assumed.unstack("replicate").to_numpy(dtype=float), values)
    return estimate_mean_of_cells(filled, confidence)


def _leave_out_chance(measured: pd.DataFrame, at_chance: pd.Series, confidence: float) -> Estimate | None:
    """The estimate without the cells at chance level, if any of them has too few runs to be sure that it diverges."""
    runs = at_chance.groupby(level="cell").sum()
    if not runs.between(1, SURE_TO_DIVERGE - 1).any():
        return None
    kept = measured[~measured.index.isin(runs.index[runs > 0])]
    return estimate_mean_of_cells(kept.to_numpy(dtype=float), confidence)


def _count_missing_causes(difference: pd.Series, sides: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """How many pairs have no difference, by cause: {"sn planned and bn diverged": 2}."""
    missing = difference.index[difference.isna()]
    if missing.empty:
        return {}
    states = {name: side[side["value"].isna()]["state"].to_dict() for name, side in sides.items()}
    causes = [" and ".join(f"{name} {lost[pair]}" for name, lost in states.items() if pair in lost) for pair in missing]
    return dict(sorted(Counter(causes).items()))


def _name_cells(levels: pd.DataFrame, numbers: pd.Series, cells: pd.Index) -> dict[int, str]:
    """Names of cells, by their levels of the factors that vary among them: {0: "B = 2, depth = 8"}."""
    first = levels[~numbers.duplicated()].set_index(numbers[~numbers.duplicated()]).loc[cells]
    varied = {name: "B" if name == "batch_size" else name for name in levels if first[name].map(repr).nunique() > 1}
    rows = first[list(varied)].to_dict("index")
    return {int(cell): ", ".join(f"{varied[name]} = {level}" for name, level in rows[cell].items()) for cell in cells}


def _format_level(factor: str, level: object) -> str:
    return level if isinstance(level, str) else f"{factor} {level!r}"
