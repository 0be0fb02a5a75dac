"""What networks chose, and how far factors move it: the ground that the questions about the choice share.

A factor is measured by how far its levels move the profile of switch weights over how far seeds alone move it, and by
the share of the variance between networks that it explains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.questions.answers import Effect, covers, format_estimate, format_number, format_states, join_words
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import (
    Estimate,
    Floats,
    Numbers,
    adjust_holm,
    cell_numbers,
    complete_block,
    ratio_p_value,
    replicates_needed,
)
from study.analysis.statistics.permanova import (
    PERMUTATIONS,
    REPLICATE,
    RESIDUAL,
    permutation_p_value,
    variance_shares,
    varied,
)
from study.analysis.statistics.profiles import (
    DEPTH_GRID,
    FLOOR,
    CellPairs,
    FactorDistances,
    comparable_pairs,
    euclidean,
    factor_distances,
    factor_effect,
    log_ratios,
    squared_distances,
)
from study.config.schema import StudyConfig
from study.plan.trials import find_factor_fields

RATIO_MARGIN = 1.1  # a factor that moves the choice by less than this ratio moves it no further in practice
EFFECT = (
    "The effect of a factor is the Jensen-Shannon distance between the switch-weight profiles of two cells that "
    "differ in it alone (of backbones, by relative depth), over the distance between replicates of a cell, both "
    "root mean squares between different replicates: at 1, it moves the choice no further than seeds do. The same with "
    f"Aitchison distances (weights below {FLOOR:g} count as {FLOOR:g}), and shares of variance (PERMANOVA; p values "
    f"from {PERMUTATIONS} permutations between networks that differ in the factor alone), are shown and do not decide."
)
PARTS = {"early": DEPTH_GRID < 1 / 3, "middle": abs(DEPTH_GRID - 0.5) < 1 / 6, "late": DEPTH_GRID > 2 / 3}
MAX_NAMED = 3  # cells that a sentence names; it counts the others


@dataclass(frozen=True, kw_only=True)
class ChoiceDistances:
    """Distances between what networks chose, in the complete block of cells and replicates that have a result.

    factors, aitchison: for every factor that varies alone, by Jensen-Shannon and by Aitchison distances.
    squared: Jensen-Shannon distances, squared: a mean over depth and statistics; (cell, replicate, cell, replicate).
    pairs, planned_pairs: of cells that differ in a factor alone, of every factor; by row of cells, planned_cells.
    profiles: (cell, replicate, statistic, depth, normalizer).
    cells: the levels of the block's cells. replicates: their numbers. rows: of the trial table, (cell, replicate).
    planned: all planned trials: their cell (a row of planned_cells), replicate and state.
    """

    factors: Mapping[str, FactorDistances]
    aitchison: Mapping[str, FactorDistances]
    squared: Floats
    pairs: Mapping[str, CellPairs]
    planned_pairs: Mapping[str, CellPairs]
    profiles: Floats
    cells: pd.DataFrame
    replicates: tuple[int, ...]
    rows: Numbers
    planned_cells: pd.DataFrame
    planned: pd.DataFrame
    covered: bool

    @property
    def n_replicates(self) -> int:
        return len(self.replicates)

    def rank(self, confidence: float, statistic: str | None = None) -> dict[str, Estimate]:
        """The effect of every factor, the strongest first."""
        return _rank({name: factor_effect(item, confidence, statistic) for name, item in self.factors.items()})

    def rank_aitchison(self, confidence: float) -> dict[str, Estimate]:
        """The same with Aitchison distances."""
        return _rank({name: factor_effect(item, confidence) for name, item in self.aitchison.items()})


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the bn member leaves the pool (BN is IN there): a rule, not a choice, so those trials stay out.
    """
    trials: pd.DataFrame = records.plain[records.plain["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def measure_distances(profiles: Mapping[str, Floats], trials: pd.DataFrame, factors: Sequence[str]) -> ChoiceDistances:
    """Distances between the profiles of finished trials, in their complete block of cells and replicates.

    profiles: by key, as `depth_profiles` has them. trials: rows of the trial table, with its index; factors: columns.
    The plan need be no full grid: a factor is measured where cells differ in it alone.
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
        pairs=pairs, planned_pairs=planned_pairs, squared=squared.mean(axis=-1), profiles=array, cells=cells,
        replicates=tuple(int(number) for number in keys.columns[columns]),
        rows=table["row"].unstack("replicate").to_numpy()[np.ix_(rows, columns)].astype(np.intp),
        planned_cells=planned_cells, planned=table[["row", "state"]].reset_index(),
        covered=covers(rows.size, len(diverged), len(keys)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- effects


def effect_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """The effect of every factor: on all weights, on those of the means and of the variances, by either distance."""
    ranks = {
        "effect": distances.rank(confidence),
        "effect_mean": distances.rank(confidence, "mean"),
        "effect_var": distances.rank(confidence, "var"),
        "effect_aitchison": distances.rank_aitchison(confidence),
    }
    return [
        factor_row(distances, measure, name, [name], item, p_values.get(name))
        for measure, rank in ranks.items()
        for p_values in [holm_p_values(rank, 1, confidence)]
        for name, item in rank.items()
    ]


def share_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """The share of variance of every factor, over all layers and over each third of the depth, the largest first."""
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
    """Of networks (cell, replicate, ...): (cell, replicate, cell, replicate)."""
    cells, replicates = coordinates.shape[:2]
    flat = coordinates.reshape(cells * replicates, -1)
    return np.asarray((flat @ flat.T).reshape(cells, replicates, cells, replicates))


def factor_row(
    distances: ChoiceDistances, measure: str, comparison: str, factors: Sequence[str], estimate: Estimate,
    p_value: float | None = None,
) -> Effect:  # fmt: skip
    """A row of what factors do: pairs of cells that differ in one alone, their trials, and the trials that lack."""
    cells, planned = (_members(found, factors) for found in (distances.pairs, distances.planned_pairs))
    trials = distances.rows[cells].ravel()
    of_cells = distances.planned[distances.planned["cell"].isin(distances.planned_cells.index[planned])]
    lacking = of_cells["state"][~of_cells["row"].isin(trials)]
    return Effect(
        measure=measure, comparison=comparison, estimate=estimate, p_value=p_value,
        n_pairs=_count(distances.pairs, factors), n_pairs_planned=_count(distances.planned_pairs, factors),
        missing=dict(sorted(Counter(lacking.replace("done", "done, outside of the complete block")).items())),
        trials=sorted(trials.tolist()),
    )  # fmt: skip


def _count(pairs: Mapping[str, CellPairs], factors: Sequence[str]) -> int:
    return sum(len(group) for name in factors for group in pairs[name])


def _members(pairs: Mapping[str, CellPairs], factors: Sequence[str]) -> list[int]:
    """The cells of those pairs."""
    return sorted({cell for name in factors for group in pairs[name] for pair in group for cell in pair})


def holm_p_values(
    ratios: Mapping[str, Estimate], line: float, confidence: float, *, above: bool = True
) -> dict[str, float]:
    """One-sided p values of ratios no larger than the line (or no smaller), adjusted for their number by Holm.

    A ratio without an interval has p = 1, and counts.
    """
    values = [ratio_p_value(item, line, confidence) for item in ratios.values()]
    raw = [1.0 if value is None else value if above else 1 - value for value in values]
    return {name: p for name, p in zip(ratios, adjust_holm(raw), strict=True) if p is not None}


def tell_apart_from(ratios: Mapping[str, Estimate], line: float, confidence: float, *, above: bool = True) -> list[str]:
    """Those of the ratios that lie above the line (or below), with a family-wise error of half of 1 - confidence."""
    level = (1 - confidence) / 2
    return [name for name, p in holm_p_values(ratios, line, confidence, above=above).items() if p < level]


# -------------------------------------------------------------------------------------------------- sentences


def factor_sentences(distances: ChoiceDistances, confidence: float) -> list[str]:
    """How far each factor moves the choice, and which of them further than seeds."""
    effects = {name: item for name, item in distances.rank(confidence).items() if item.value is not None}
    if not effects:
        return ["There is no movement by seeds to compare with; it takes a second replicate."] * bool(distances.factors)
    more = tell_apart_from(effects, 1, confidence)
    no_more = [name for name in tell_apart_from(effects, RATIO_MARGIN, confidence, above=False) if name not in more]
    unclear = [name for name in effects if name not in more + no_more]
    numbers = "; ".join(f"{name} {format_estimate(item, confidence, digits=2)}" for name, item in effects.items())
    groups = {"More than seeds": more, "No further than seeds": no_more, "Not told apart from seeds": unclear}
    return [
        f"How far each moves the choice over how far seeds do, strongest first: {numbers}.",
        *(f"{words}: {join_words(names)}." for words, names in groups.items() if names),
    ]


def share_sentences(rows: Sequence[Effect]) -> list[str]:
    """The ranking by share of variance; `rows` are those of `share_rows`."""
    shares = [row for row in rows if row.measure == "share_of_variance" and row.estimate.value is not None]
    said = "; ".join(f"{row.comparison} {_show_share(row.estimate)}" for row in shares)
    return [f"Of the variance between what networks chose: {said}."] if shares else []


def _show_share(share: Estimate) -> str:
    value, *ends = (
        None if end is None else format_number(100 * end, 0) for end in (share.value, share.low, share.high)
    )
    return f"{value} %" + (f" ({ends[0]} to {ends[1]} %)" if None not in ends else "")


def company_sentences(study: StudyConfig, factors: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Says what else changes with the levels of a factor, beside itself and what is known."""
    company = {
        name: [field for field in find_factor_fields(study, name) if field not in (name, *known)] for name in factors
    }
    return [f"With {factor} also change: {join_words(fields)}." for factor, fields in company.items() if fields]


def closing_sentences(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """What is not in the numbers: other starts, B = 1, no result. `trials` are those of `select_choices`."""
    found = []
    of_norm, plain = (
        int(each["norm"].eq(records.reference_norm or "").sum()) for each in (records.trials, records.plain)
    )
    if started := of_norm - plain:
        found.append(f"{started} runs that start from others are left out.")
    if left_out := plain - len(trials):
        found.append(f"{left_out} runs at B = 1 are left out: there bn is not in the pool, by rule and not by choice.")
    missing = trials["state"][trials["state"].ne("done")]
    return [*found, f"Runs of {records.reference_norm} without a result to compare: {format_states(missing)}."]


def common_needs(distances: ChoiceDistances) -> list[str]:
    """The cells and replicates that any verdict on the choice takes, where they are lacking."""
    needs = []
    if not distances.covered:
        n_cells = f"{len(distances.cells)} of {len(distances.planned_cells)} complete"
        needs.append(f"results in more cells ({n_cells}): {_name_lacking(distances)}")
    if distances.n_replicates < 3:
        more = 3 - distances.n_replicates
        needs.append(
            f"at least 3 replicates of every cell, better 5 (now {distances.n_replicates}; "
            f"{more} more at every cell would do)"
        )
    return needs


def replicates_need(
    distances: ChoiceDistances, factors: Sequence[str], estimate: Estimate, confidence: float
) -> list[str]:
    """What would settle a ratio that is not settled: either end may, above 1 or below the margin."""
    if not (estimate.value and estimate.low and estimate.high):
        return []
    half_width = np.log(estimate.high / estimate.low) / 2
    target = max(np.log(estimate.value), np.log(RATIO_MARGIN / estimate.value))
    needed = replicates_needed(half_width, target, estimate.n, confidence)
    if needed is None:
        return ["more than 1000 replicates"]
    more = max(1, needed - estimate.n)
    return [
        f"about {more} more replicate{'s' * (more != 1)} {_say_where(distances, factors)}, if they spread as so far"
    ]


def _say_where(distances: ChoiceDistances, factors: Sequence[str]) -> str:
    """The cells in which factors vary: `at every cell`, or `at decay = step and solver = sgd`."""
    cells = distances.cells.iloc[_members(distances.pairs, factors)]
    constant = [
        name for name in cells if cells[name].nunique(dropna=False) == 1 < distances.cells[name].nunique(dropna=False)
    ]
    return f"at {_name_cell(cells.iloc[0], constant)}" if constant else "at every cell"


def _name_lacking(distances: ChoiceDistances) -> str:
    """The cells outside of the block, those that lack most first: `3 more replicates at batch_size = 2; ...`."""
    factors = varied(distances.planned_cells)
    outside = distances.planned[~distances.planned["cell"].isin(distances.cells.index)]
    lacking = outside[~outside["state"].isin(["done", "diverged"])].groupby("cell").size()
    said = [
        f"{count} more replicate{'s' * (count != 1)} at {_name_cell(distances.planned_cells.loc[cell], factors)}"
        for cell, count in lacking.sort_values(ascending=False, kind="stable").items()
    ]
    left = len(said) - MAX_NAMED
    return "; ".join([*said[:MAX_NAMED], *([f"and {left} more cells"] if left > 0 else [])])


def _name_cell(levels: pd.Series, factors: Sequence[str]) -> str:
    return join_words(f"{name} = {levels[name]}" for name in factors) if len(factors) else "the one cell"


def _rank(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return dict(sorted(estimates.items(), key=lambda pair: -(pair[1].value or 0)))
