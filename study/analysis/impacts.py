"""Question 2: what impacts the choice?

The paper (arXiv 1811.07727) says that depth and batch size move it more than parameter initialization,
learning-rate decay and solver do. Here each factor is measured by how far its levels move the profile of
switch weights over how far seeds alone move it, and the BN share is compared between the extreme batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from study.analysis.answers import (
    MIN_CELLS,
    Answer,
    Effect,
    Verdict,
    covers,
    difference_effect,
    join_words,
    say_replicates_needed,
    show_estimate,
    show_states,
)
from study.analysis.records import StudyRecords
from study.analysis.statistics import (
    STATISTICS,
    Estimate,
    FactorDistances,
    PairedDifference,
    cell_numbers,
    complete_block,
    count_cell_pairs,
    effect_contrast,
    factor_distances,
    factor_effect,
    paired_differences,
)

TITLE = "What impacts the choice?"
STRONG = ("depth", "batch_size")  # the paper's claim
WEAK = ("initialization", "decay", "solver")
MARGIN = 1.1  # a factor that moves the choice by less than this ratio moves it no further in practice

Contrasts = Mapping[tuple[str, str], Estimate]
Shares = Mapping[str, PairedDifference]


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


def answer_impacts(records: StudyRecords) -> Answer:
    """Ranks factors by how far they move the choices of the reference norm. Works on any part of a study."""
    confidence, trials = records.study.analysis.confidence, select_choices(records)
    distances, shares = measure_distances(records, trials), compare_bn_shares(records, trials)
    contrasts = {
        (strong, weak): effect_contrast(distances.factors[strong], distances.factors[weak], confidence)
        for strong, weak in product(STRONG, WEAK)
        if strong in distances.factors and weak in distances.factors
    }
    verdict = decide(contrasts, covered=distances.covered)
    return Answer(
        title=TITLE, verdict=verdict,
        answer=_sentences(records, trials, verdict, distances, contrasts, shares),
        rule=_rule(confidence),
        effects=_effects(distances, contrasts, shares, confidence),
        n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_needs(records, verdict, distances, contrasts),
    )  # fmt: skip


def decide(contrasts: Contrasts, *, covered: bool) -> Verdict:
    """The rule that `_rule` puts into words, on the ratios of effects, strong over weak."""
    if covered and any(item.below(MARGIN) for item in contrasts.values()):
        return "not supported"
    both = {strong for strong, _ in contrasts} == set(STRONG)
    if covered and both and all(item.above(1) for item in contrasts.values()):
        return "supported"
    return "not enough evidence"


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the bn member leaves the pool (BN is IN there): a rule, not a choice, so those trials stay out.
    """
    trials: pd.DataFrame = records.trials[records.trials["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def measure_distances(records: StudyRecords, trials: pd.DataFrame) -> ChoiceDistances:
    """Distances between the profiles of finished trials, in their complete block of cells and replicates."""
    factors = [name for name in records.study.factors if name != "norm"]
    index = [cell_numbers(trials, factors).rename("cell"), trials["replicate"]]
    table = trials.set_index(index)
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


def bn_shares(switch: pd.DataFrame) -> pd.DataFrame:
    """BN's part of each trial's switch weights, a mean over layers: of both statistics, of each."""
    bn = switch[switch["normalizer"].eq("bn")]
    table = bn.groupby(["key", "statistic"], observed=True)["weight"].mean().unstack("statistic")
    table = table.reindex(columns=list(STATISTICS)).astype(float).add_prefix("bn_share_")
    table.insert(0, "bn_share", table.mean(axis=1))
    shares: pd.DataFrame = table.reset_index()
    return shares


def compare_bn_shares(records: StudyRecords, trials: pd.DataFrame) -> dict[str, PairedDifference]:
    """The BN share at the largest B minus that at the smallest: of both statistics and of each."""
    levels = sorted(trials["batch_size"].unique())
    if "batch_size" not in records.study.factors or len(levels) < 2 or "bn" not in trials["pool"].iloc[0]:
        return {}
    table = trials.merge(bn_shares(records.switch), on="key", how="left")
    return {
        name: paired_differences(
            table, factors=list(records.study.factors), factor="batch_size", reference=levels[-1],
            other=levels[0], metric=name, confidence=records.study.analysis.confidence,
        )
        for name in ("bn_share", "bn_share_mean", "bn_share_var")
    }  # fmt: skip


def _rule(confidence: float) -> str:
    return (
        f"Strong above weak. The effect of a factor is the mean Jensen-Shannon distance between the "
        f"switch-weight profiles of two cells that differ in it alone, over the mean distance between "
        f"replicates of a cell, both between different replicates: at 1, it moves the choice no further than "
        f"seeds do. Supported: depth and batch_size vary, with at least one of {', '.join(WEAK)}, and for "
        f"every such pair the {confidence * 100:g} % interval of effect over effect lies above 1. Not "
        f"supported: for any pair it lies below {MARGIN:g}. Otherwise: not enough evidence. It needs "
        f"{MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Effects belong to the levels that are "
        f"compared: levels further apart move more."
    )


def _sentences(
    records: StudyRecords, trials: pd.DataFrame, verdict: Verdict,
    distances: ChoiceDistances, contrasts: Contrasts, shares: Shares,
) -> str:  # fmt: skip
    if records.reference_norm is None:
        return "The study holds no switch norm, so there is no choice to look at."
    if not len(distances.cells):
        return f"No run of {records.reference_norm} has finished with switch weights."
    opening = "It cannot be said yet."
    if verdict == "supported":
        opening = f"Yes, in this study: {_side(contrasts, 0)} move the choice further than {_side(contrasts, 1)}."
    if verdict == "not supported":
        lost = join_words(f"{a} over {b}" for (a, b), item in contrasts.items() if item.below(MARGIN))
        opening = f"No, in this study: the ratio of effects is below {MARGIN:g} for {lost}."
    parts = [opening, *_factor_sentences(distances, records.study.analysis.confidence)]
    parts += _share_sentences(shares, records.study.analysis.confidence)
    parts += _gradient_batch_sentence(trials)
    if left_out := int(records.trials["norm"].eq(records.reference_norm).sum()) - len(trials):
        parts.append(f"{left_out} runs at B = 1 are left out: there bn is not in the pool, by rule and not by choice.")
    missing = trials["state"][trials["state"].ne("done")]
    parts.append(f"Runs of {records.reference_norm} without a result to compare: {show_states(missing)}.")
    return " ".join(parts)


def _gradient_batch_sentence(trials: pd.DataFrame) -> list[str]:
    """Says what else B moves: with a fixed number of chunks, the gradient batch, and all that follows from it."""
    batches = trials.groupby("batch_size")["gradient_batch"].unique()
    if len(batches) < 2 or len({tuple(sorted(values)) for values in batches}) == 1:
        return []
    each = ", ".join(f"{'/'.join(map(str, values))} at B = {level}" for level, values in batches.items())
    return [
        f"With B the gradient batch changes too ({each}), and with it the learning rate and the number of steps; "
        "fixed_gradient_batch holds it."
    ]


def _side(contrasts: Contrasts, side: int) -> str:
    return join_words(dict.fromkeys(pair[side] for pair in contrasts))


def _factor_sentences(distances: ChoiceDistances, confidence: float) -> list[str]:
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


def _share_sentences(shares: Shares, confidence: float) -> list[str]:
    if not shares or shares["bn_share"].estimate.value is None:
        return []
    whole, mean, var = (
        show_estimate(shares[name].estimate, confidence, sign=True)
        for name in ("bn_share", "bn_share_mean", "bn_share_var")
    )
    levels = f"from B = {shares['bn_share'].other} to B = {shares['bn_share'].reference}"
    return [f"The BN share changes by {whole} {levels}: mean weights {mean}, variance weights {var}."]


def _effects(distances: ChoiceDistances, contrasts: Contrasts, shares: Shares, confidence: float) -> list[Effect]:
    named = [
        (measure, name, name, estimate)
        for measure, statistic in (("effect", None), ("effect_mean", "mean"), ("effect_var", "var"))
        for name, estimate in distances.rank(confidence, statistic).items()
    ]
    named += [("effect_ratio", f"{a} / {b}", a, estimate) for (a, b), estimate in contrasts.items()]
    rows = [
        Effect(
            measure=measure, comparison=comparison, estimate=estimate,
            n_pairs=count_cell_pairs(distances.cells, factor),
            n_pairs_planned=count_cell_pairs(distances.planned_cells, factor),
        )
        for measure, comparison, factor, estimate in named
    ]  # fmt: skip
    return rows + [
        difference_effect(name, f"B {item.reference} - B {item.other}", item) for name, item in shares.items()
    ]


def _needs(records: StudyRecords, verdict: Verdict, distances: ChoiceDistances, contrasts: Contrasts) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    if records.reference_norm is None:
        return ["runs of a switch norm (sn)"]
    varied = [name for name in distances.planned_cells if count_cell_pairs(distances.planned_cells, str(name))]
    needs = [f"cells that differ in {name} alone" for name in STRONG if name not in varied]
    if not set(WEAK) & set(varied):
        needs.append(f"cells that differ in one of {', '.join(WEAK)} alone")
    if not distances.covered:
        needs.append(f"results in more cells ({len(distances.cells)} of {len(distances.planned_cells)} complete)")
    if distances.n_replicates < 3:
        needs.append(f"at least 3 replicates of every cell, better 5 (now {distances.n_replicates})")
    for (strong, weak), item in contrasts.items():
        if item.value is not None and item.low is not None and item.high is not None and not item.above(1):
            half_width, target = np.log(item.high / item.low) / 2, max(np.log(item.value), np.log(MARGIN / item.value))
            more = say_replicates_needed(half_width, target, item.n, records.study.analysis.confidence)
            needs.append(f"{strong} against {weak}: {more}")
    return needs
