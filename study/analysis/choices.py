"""What networks chose, and how far factors move it: the ground that the questions about the choice share.

A factor is measured by how far its levels move the profile of switch weights over how far seeds alone move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.answers import Effect, covers, join_words, say_replicates_needed, show_estimate, show_states
from study.analysis.profiles import FactorDistances, count_cell_pairs, factor_distances, factor_effect
from study.analysis.records import StudyRecords
from study.analysis.statistics import Estimate, cell_numbers, complete_block
from study.config import StudyConfig

MARGIN = 1.1  # a factor that moves the choice by less than this ratio moves it no further in practice
EFFECT = (
    "The effect of a factor is the mean Jensen-Shannon distance between the switch-weight profiles of two cells that "
    "differ in it alone (of their backbones, by relative depth), over the mean distance between replicates of a cell, "
    "both between different replicates: at 1, it moves the choice no further than seeds do."
)


@dataclass(frozen=True, kw_only=True)
class ChoiceDistances:
    """Distances between what networks chose, for every factor that varies in the complete block of cells."""

    factors: Mapping[str, FactorDistances]
    cells: pd.DataFrame
    planned_cells: pd.DataFrame
    n_replicates: int
    covered: bool

    def rank(self, confidence: float, statistic: str | None = None) -> dict[str, Estimate]:
        """The effect of every factor, the strongest first."""
        effects = {name: factor_effect(item, confidence, statistic) for name, item in self.factors.items()}
        return dict(sorted(effects.items(), key=lambda pair: -(pair[1].value or 0)))


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the bn member leaves the pool (BN is IN there): a rule, not a choice, so those trials stay out.
    """
    trials: pd.DataFrame = records.plain[records.plain["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def measure_distances(records: StudyRecords, trials: pd.DataFrame, factors: Sequence[str]) -> ChoiceDistances:
    """Distances between the profiles of finished trials, in their complete block of cells and replicates.

    factors: columns of `trials`. The plan need be no full grid: a factor is measured where cells differ in it alone.
    """
    table = trials.set_index([cell_numbers(trials, ["trial_id"]).rename("cell"), trials["replicate"]])
    profiles = records.profiles
    keys = table["key"].where(table["state"].eq("done") & table["key"].isin(list(profiles))).unstack("replicate")
    rows, columns = complete_block(keys.notna().to_numpy())
    array = np.array([[profiles[key] for key in row] for row in keys.to_numpy()[np.ix_(rows, columns)]])
    planned = pd.DataFrame({name: table.groupby("cell")[name].first() for name in factors}, index=keys.index)
    diverged = {cell for cell, _ in table.index[table["state"].eq("diverged")]} - set(keys.index[rows])
    cells = planned.iloc[rows]
    return ChoiceDistances(
        factors={name: factor_distances(array, cells, name) for name in factors if count_cell_pairs(cells, name)},
        cells=cells, planned_cells=planned, n_replicates=columns.size,
        covered=covers(rows.size, len(diverged), len(planned)),
    )  # fmt: skip


def effect_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """The effect of every factor: on all weights, on those of the means, and on those of the variances."""
    return [
        factor_row(distances, measure, name, name, estimate)
        for measure, statistic in (("effect", None), ("effect_mean", "mean"), ("effect_var", "var"))
        for name, estimate in distances.rank(confidence, statistic).items()
    ]


def factor_row(distances: ChoiceDistances, measure: str, comparison: str, factor: str, estimate: Estimate) -> Effect:
    """A row with the number of cell pairs that differ in the factor alone."""
    return Effect(
        measure=measure, comparison=comparison, estimate=estimate,
        n_pairs=count_cell_pairs(distances.cells, factor),
        n_pairs_planned=count_cell_pairs(distances.planned_cells, factor),
    )  # fmt: skip


def factor_sentences(distances: ChoiceDistances, confidence: float) -> list[str]:
    """How far each factor moves the choice, and which of them further than seeds."""
    effects = {name: item for name, item in distances.rank(confidence).items() if item.value is not None}
    if not effects:
        return ["There is no movement by seeds to compare with; it takes a second replicate."] * bool(distances.factors)
    more = [name for name, item in effects.items() if item.above(1)]
    no_more = [name for name, item in effects.items() if item.below(MARGIN) and name not in more]
    unclear = [name for name in effects if name not in more + no_more]
    numbers = "; ".join(f"{name} {show_estimate(item, confidence, digits=2)}" for name, item in effects.items())
    groups = {"More than seeds": more, "No further than seeds": no_more, "Not told apart from seeds": unclear}
    return [
        f"How far each moves the choice over how far seeds do, strongest first: {numbers}.",
        *(f"{words}: {join_words(names)}." for words, names in groups.items() if names),
    ]


def company_sentences(study: StudyConfig, factors: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Says what else changes with the levels of a factor, beside itself and what is known."""
    company = {name: [field for field in study.fields_of(name) if field not in (name, *known)] for name in factors}
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
    return [*found, f"Runs of {records.reference_norm} without a result to compare: {show_states(missing)}."]


def common_needs(distances: ChoiceDistances) -> list[str]:
    """The cells and replicates that any verdict on the choice takes, where they are lacking."""
    needs = []
    if not distances.covered:
        needs.append(f"results in more cells ({len(distances.cells)} of {len(distances.planned_cells)} complete)")
    if distances.n_replicates < 3:
        needs.append(f"at least 3 replicates of every cell, better 5 (now {distances.n_replicates})")
    return needs


def replicates_need(estimate: Estimate, confidence: float) -> list[str]:
    """What would settle a ratio that is not settled: either end may, above 1 or below the margin."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return []
    half_width = np.log(estimate.high / estimate.low) / 2
    target = max(np.log(estimate.value), np.log(MARGIN / estimate.value))
    return [say_replicates_needed(half_width, target, estimate.n, confidence)]
