"""Effects of factors on what networks chose.

The effect of a factor is how far its levels move the profile of switch weights, relative to how far another seed moves
it. The share of the variance between networks that the factor explains is reported with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.questions.answers import Effect, covers
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import (
    Estimate,
    Floats,
    Numbers,
    adjust_holm,
    cell_numbers,
    complete_block,
    ratio_p_value,
)
from study.analysis.statistics.measures import build_measures
from study.analysis.statistics.permanova import (
    REPLICATE,
    RESIDUAL,
    permutation_p_value,
    variance_shares,
)
from study.analysis.statistics.profiles import (
    DEPTH_GRID,
    CellPairs,
    FactorDistances,
    comparable_pairs,
    euclidean,
    factor_distances,
    factor_effect,
    log_ratios,
    squared_distances,
)
from study.config.choice_space import ChoiceSpace

RATIO_MARGIN = 1.1  # a factor that moves the choice by less than this ratio moves it no further in practice
PARTS = {"early": DEPTH_GRID < 1 / 3, "middle": abs(DEPTH_GRID - 0.5) < 1 / 6, "late": DEPTH_GRID > 2 / 3}


@dataclass(frozen=True, kw_only=True)
class ChoiceDistances:
    """Distances between what networks chose, over the complete block of cells and replicates that have a result.

    factors, aitchison: Jensen-Shannon and Aitchison distances for every factor that varies alone.
    squared: squared Jensen-Shannon distances, means over depth and axes: (cell, replicate, cell, replicate).
    pairs, planned_pairs: for every factor the pairs of cells that differ in it alone, by row of cells, planned_cells.
    profiles: (cell, replicate, statistic, depth, normalizer), of choices from `space`.
    cells: the levels of the block's cells. replicates: their numbers.
    rows: rows of the trial table, (cell, replicate).
    planned: the cell (a row of planned_cells), replicate and state of every planned trial.
    covered: whether enough of the planned cells have a result for a verdict.
    """

    factors: Mapping[str, FactorDistances]
    aitchison: Mapping[str, FactorDistances]
    squared: Floats
    pairs: Mapping[str, CellPairs]
    planned_pairs: Mapping[str, CellPairs]
    profiles: Floats
    space: ChoiceSpace
    cells: pd.DataFrame
    replicates: tuple[int, ...]
    rows: Numbers
    planned_cells: pd.DataFrame
    planned: pd.DataFrame
    covered: bool

    @property
    def n_replicates(self) -> int:
        return len(self.replicates)

    def rank(self, confidence: float, axis: int | None = None) -> dict[str, Estimate]:
        """The effect of every factor, the strongest first; `axis`: the number of the one axis to measure."""
        return _rank({name: factor_effect(item, confidence, axis) for name, item in self.factors.items()})

    def rank_aitchison(self, confidence: float) -> dict[str, Estimate]:
        """The same with Aitchison distances."""
        return _rank({name: factor_effect(item, confidence) for name, item in self.aitchison.items()})


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the member bn leaves the pool (there BN is IN): a rule, not a choice, so those trials are left out.
    """
    trials: pd.DataFrame = records.from_scratch[records.from_scratch["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def measure_distances(
    profiles: Mapping[str, Floats], trials: pd.DataFrame, factors: Sequence[str], space: ChoiceSpace
) -> ChoiceDistances:
    """Distances between the profiles of finished trials, over their complete block of cells and replicates.

    profiles: from `depth_profiles`. trials: rows of the trial table, with its index. factors: columns of `trials`.
    The plan may be an incomplete grid: a factor is measured where cells differ in it alone.
    """
    cell = cell_numbers(trials, ["trial_id"])
    table = trials.assign(cell=cell, row=trials.index).set_index(["cell", "replicate"])
    found = table["state"].eq("done") & table["key"].isin(list(profiles))
    keys = table["key"].where(found).unstack("replicate")
    rows, columns = complete_block(keys.notna().to_numpy())
    chosen = keys.to_numpy()[np.ix_(rows, columns)]
    array = np.array([[profiles[key] for key in row] for row in chosen])
    array = array if array.size else np.empty((0, 0, 1, 1, 1))
    planned_cells = pd.DataFrame({name: table.groupby("cell")[name].first() for name in factors}, index=keys.index)
    cells = planned_cells.iloc[rows]
    pairs, planned_pairs = (
        {name: comparable_pairs(frame, name) for name in factors} for frame in (cells, planned_cells)
    )
    squared, aitchison = squared_distances(array), squared_distances(log_ratios(array), euclidean)
    diverged = {cell for cell, _ in table.index[table["state"].eq("diverged")]} - set(keys.index[rows])
    return ChoiceDistances(
        factors={name: factor_distances(squared, found) for name, found in pairs.items() if found},
        aitchison={name: factor_distances(aitchison, found) for name, found in pairs.items() if found},
        pairs=pairs, planned_pairs=planned_pairs, squared=squared.mean(axis=-1), profiles=array, space=space,
        cells=cells,
        replicates=tuple(int(number) for number in keys.columns[columns]),
        rows=table["row"].unstack("replicate").to_numpy()[np.ix_(rows, columns)].astype(np.intp),
        planned_cells=planned_cells, planned=table[["row", "state"]].reset_index(),
        covered=covers(rows.size, len(diverged), len(keys)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- effects


def effect_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """Rows for the effect of every factor: on all weights, on those of each axis, and by Aitchison distances."""
    ranks = {
        "effect": distances.rank(confidence),
        **{
            f"effect_{axis.name}": distances.rank(confidence, number)
            for number, axis in enumerate(distances.space.axes)
        },
        "effect_aitchison": distances.rank_aitchison(confidence),
    }
    return [
        factor_row(distances, measure, name, [name], item, p_values.get(name))
        for measure, rank in ranks.items()
        for p_values in [adjust_ratio_p_values(rank, 1, confidence)]
        for name, item in rank.items()
    ]


def share_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """Rows for the share of variance of every factor, over all layers and each third of the depth, largest first."""
    if distances.n_replicates < 2 or not distances.factors:
        return []
    names, products = list(distances.factors), -distances.squared / 2
    tests = adjust_holm([
        permutation_p_value(products, distances.cells, name, np.random.default_rng([7, number]))
        for number, name in enumerate(names)
    ])  # fmt: skip
    p_values = dict(zip(names, tests, strict=True))
    shares = variance_shares(products, distances.cells, confidence)
    found = [
        factor_row(distances, "share_of_variance", name, [name], item, p_values[name])
        for name, item in _rank({name: shares[name] for name in names if name in shares}).items()
    ]
    found += [
        factor_row(distances, "share_of_variance", name, names, shares[name])
        for name in (REPLICATE, RESIDUAL)
        if name in shares
    ]
    coordinates = log_ratios(distances.profiles)
    for part, depths in PARTS.items():
        shares = variance_shares(inner_products(coordinates[:, :, :, depths]), distances.cells, confidence)
        found += [
            factor_row(distances, "layer_share", f"{name}, {part} layers", [name], item)
            for name, item in _rank({name: shares[name] for name in names if name in shares}).items()
        ]
    return found


def inner_products(coordinates: Floats) -> Floats:
    """Inner products of the coordinates of networks, (cell, replicate, ...): (cell, replicate, cell, replicate)."""
    cells, replicates = coordinates.shape[:2]
    flat = coordinates.reshape(cells * replicates, -1)
    return np.asarray((flat @ flat.T).reshape(cells, replicates, cells, replicates))


def factor_row(
    distances: ChoiceDistances, measure: str, comparison: str, factors: Sequence[str], estimate: Estimate,
    p_value: float | None = None,
) -> Effect:  # fmt: skip
    """A row about factors: the pairs of cells that differ in one alone, their trials, and what is missing."""
    cells, planned = (cells_of_pairs(found, factors) for found in (distances.pairs, distances.planned_pairs))
    trials = distances.rows[cells].ravel()
    of_cells = distances.planned[distances.planned["cell"].isin(distances.planned_cells.index[planned])]
    missing = of_cells["state"][~of_cells["row"].isin(trials)]
    return Effect(
        measure=build_measures(distances.space)[measure], comparison=comparison, estimate=estimate, p_value=p_value,
        n_pairs=_count(distances.pairs, factors), n_pairs_planned=_count(distances.planned_pairs, factors),
        missing=dict(sorted(Counter(missing.replace("done", "done, outside of the complete block")).items())),
        trials=sorted(trials.tolist()),
    )  # fmt: skip


def _count(pairs: Mapping[str, CellPairs], factors: Sequence[str]) -> int:
    return sum(len(group) for name in factors for group in pairs[name])


def cells_of_pairs(pairs: Mapping[str, CellPairs], factors: Sequence[str]) -> list[int]:
    """The rows of the cells in the pairs of these factors."""
    return sorted({cell for name in factors for group in pairs[name] for pair in group for cell in pair})


def adjust_ratio_p_values(
    ratios: Mapping[str, Estimate], line: float, confidence: float, *, above: bool = True
) -> dict[str, float]:
    """One-sided p values that ratios are no larger than the line (or no smaller), adjusted for their number by Holm.

    A ratio without an interval has p = 1 and counts as one of them.
    """
    values = [ratio_p_value(item, line, confidence) for item in ratios.values()]
    raw = [1.0 if value is None else value if above else 1 - value for value in values]
    return {name: p for name, p in zip(ratios, adjust_holm(raw), strict=True) if p is not None}


def find_distinguished(
    ratios: Mapping[str, Estimate], line: float, confidence: float, *, above: bool = True
) -> list[str]:
    """The ratios that lie above the line (or below), with a family-wise error rate of half of 1 - confidence."""
    level = (1 - confidence) / 2
    return [name for name, p in adjust_ratio_p_values(ratios, line, confidence, above=above).items() if p < level]


def _rank(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return dict(sorted(estimates.items(), key=lambda pair: -(pair[1].value or 0)))
