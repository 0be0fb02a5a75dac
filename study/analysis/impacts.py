"""Question 2: what impacts the choice?

The paper (arXiv 1811.07727) says that depth and batch size move it more than parameter initialization, learning-rate
decay and solver do. Here each factor is measured by how far its levels move the profile of switch weights, over how
far seeds alone move it; and the BN share is compared between the smallest and the largest batch.
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
    need_replicates,
    show_estimate,
    show_states,
    tally,
)
from study.analysis.records import StudyRecords
from study.analysis.statistics import (
    STATISTICS,
    Estimate,
    FactorDistances,
    Floats,
    PairedDifference,
    cell_numbers,
    complete_block,
    count_cell_pairs,
    depth_profile,
    effect_contrast,
    factor_distances,
    factor_effect,
    paired_differences,
)

TITLE = "What impacts the choice?"
STRONG = ("depth", "batch_size")  # the paper's claim
WEAK = ("initialization", "decay", "solver")
MARGIN = 1.1  # a ratio of effects below this is no practical difference


def answer_impacts(records: StudyRecords) -> Answer:
    """Ranks the factors by how far they move the choices of the reference norm. Works on any part of a study."""
    confidence = records.study.analysis.confidence
    trials = select_choices(records)
    block = _find_block(records, trials)
    contrasts = {
        (strong, weak): effect_contrast(block.distances[strong], block.distances[weak], confidence)
        for strong, weak in product(STRONG, WEAK) if strong in block.distances and weak in block.distances
    }  # fmt: skip
    shares = _compare_shares(records, trials)
    verdict = decide(contrasts, covered=block.covered)
    return Answer(
        name="impacts", title=TITLE, verdict=verdict,
        answer=_sentences(records, trials, verdict, block, contrasts, shares),
        rule=_rule(confidence),
        effects=_effects(block, contrasts, shares, confidence),
        n_done=int((trials["state"] == "done").sum()), n_planned=len(trials),
        needs=_needs(verdict, records, block, contrasts),
    )  # fmt: skip


def decide(contrasts: Mapping[tuple[str, str], Estimate], *, covered: bool) -> Verdict:
    """The rule that `_rule` puts into words, on the ratios of effects, strong over weak."""
    if not covered or not contrasts:
        return "not enough evidence"
    if any(item.high is not None and item.high < MARGIN for item in contrasts.values()):
        return "not supported"
    both = {strong for strong, _ in contrasts} == set(STRONG)
    above = all(item.low is not None and item.low > 1 for item in contrasts.values())
    return "supported" if both and above else "not enough evidence"


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the bn member leaves the pool (BN is IN there). That is a rule, not a choice, so those trials stay out.
    """
    trials = records.trials[records.trials["norm"] == records.reference_norm]
    whole = trials["pool"].str.len().max()  # pools of one norm are nested
    return trials[trials["pool"].str.len() == whole]


@dataclass(frozen=True, kw_only=True)
class _Block:
    """The complete block of cells and replicates, and the distances in it for every factor that varies there."""

    distances: dict[str, FactorDistances]
    planned_pairs: dict[str, int]
    n_cells: int
    n_cells_planned: int
    n_replicates: int
    covered: bool


def _find_block(records: StudyRecords, trials: pd.DataFrame) -> _Block:
    factors = [name for name in records.study.factors if name != "norm"]
    keys = trials.assign(cell=cell_numbers(trials, factors)).set_index(["cell", "replicate"])
    cells = keys.groupby("cell")[factors].first() if factors else pd.DataFrame(index=range(min(1, len(keys))))
    profiles = _profiles(records, trials)
    table = keys["key"].where(keys["key"].isin(list(profiles))).unstack("replicate")
    rows, columns = complete_block(table.notna().to_numpy())
    diverged = keys.index[keys["state"] == "diverged"].unique("cell").difference(table.index[rows])
    chosen = table.to_numpy()[np.ix_(rows, columns)]
    array = np.array([[profiles[key] for key in row] for row in chosen])
    varied = [name for name in factors if count_cell_pairs(cells.iloc[rows], name)]
    return _Block(
        distances={name: factor_distances(array, cells.iloc[rows], name) for name in varied},
        planned_pairs={name: count_cell_pairs(cells, name) for name in factors},
        n_cells=rows.size, n_cells_planned=len(cells), n_replicates=columns.size,
        covered=covers(rows.size, len(diverged), len(cells)),
    )  # fmt: skip


def _profiles(records: StudyRecords, trials: pd.DataFrame) -> dict[str, Floats]:
    done = trials.loc[trials["state"] == "done", "key"]
    switch = records.switch[records.switch["key"].isin(done)]
    return {str(key): depth_profile(layers) for key, layers in switch.groupby("key", sort=False)}


def _compare_shares(records: StudyRecords, trials: pd.DataFrame) -> dict[str, PairedDifference]:
    """The BN share at the largest B minus that at the smallest, of all weights and of either statistic."""
    levels = sorted(trials["batch_size"].unique())
    if (
        "batch_size" not in records.study.factors
        or len(levels) < 2
        or "bn" not in trials["pool"].iloc[0].split(",")
    ):
        return {}
    shares = bn_shares(records.switch)
    return {
        name: paired_differences(
            trials.merge(shares, on="key", how="left"), factors=list(records.study.factors), factor="batch_size",
            reference=levels[-1], other=levels[0], metric=name, confidence=records.study.analysis.confidence,
        )
        for name in shares if name != "key"
    }  # fmt: skip


def bn_shares(switch: pd.DataFrame) -> pd.DataFrame:
    """BN's part of the switch weights of each trial, averaged over layers: columns key, bn_share, and one a statistic."""
    rows = switch[switch["normalizer"] == "bn"]
    table = rows.pivot_table(index="key", columns="statistic", values="weight", observed=True)
    table = table.reindex(columns=list(STATISTICS)).add_prefix("bn_share_")
    table.insert(0, "bn_share", table.mean(axis=1))
    return table.reset_index()


def _rule(confidence: float) -> str:
    return (
        f"Strong above weak. Effect of a factor: mean Jensen-Shannon distance between the switch-weight profiles of two "
        f"cells that differ in it alone, over the mean distance between replicates of one cell, both at different "
        f"replicates; 1 means that it moves the choice no further than seeds do. Supported: depth and batch_size are "
        f"both varied, with at least one of {', '.join(WEAK)}, and for every pair of them the {confidence * 100:g} % "
        f"interval of effect over effect lies above 1. Not supported: for any pair it lies below {MARGIN:g}. Otherwise "
        f"not enough evidence. It needs {MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Effects belong to "
        f"the levels compared: wider levels move more."
    )


def _sentences(
    records: StudyRecords, trials: pd.DataFrame, verdict: Verdict, block: _Block,
    contrasts: Mapping[tuple[str, str], Estimate], shares: Mapping[str, PairedDifference],
) -> str:  # fmt: skip
    if records.reference_norm is None:
        return "The study holds no switch norm, so there are no choices to look at."
    if not block.n_cells:
        return f"No trial of {records.reference_norm} with switch weights has finished."
    strong, weak = (
        join_words(list(dict.fromkeys(pair[side] for pair in contrasts)) or ["nothing"]) for side in (0, 1)
    )
    small = [
        f"{a} over {b}" for (a, b), item in contrasts.items() if item.high is not None and item.high < MARGIN
    ]
    opening = {
        "supported": f"Yes, in this study: {strong} move the choice further than {weak}.",
        "not supported": f"No, in this study: the ratio of effects is below {MARGIN:g} for {join_words(small or ['-'])}.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    parts = [opening, *_factor_sentences(block, records.study.analysis.confidence)]
    parts += _share_sentences(shares, records.study.analysis.confidence)
    left_out = int((records.trials["norm"] == records.reference_norm).sum()) - len(trials)
    if left_out:
        parts.append(
            f"{left_out} planned runs at B = 1 are left out: there the pool has no bn by rule, not by choice."
        )
    missing = trials.loc[trials["state"] != "done", "state"]
    parts.append(
        f"Runs of {records.reference_norm} without a result to compare: {show_states(tally(missing))}."
    )
    return " ".join(parts)


def _factor_sentences(block: _Block, confidence: float) -> list[str]:
    effects = _rank(block, confidence)
    if not effects:
        return []
    numbers = "; ".join(
        f"{name} {show_estimate(item, confidence, digits=2)}" for name, item in effects.items()
    )
    more = [name for name, item in effects.items() if item.low is not None and item.low > 1]
    no_more = [name for name, item in effects.items() if item.high is not None and item.high < MARGIN]
    unclear = [name for name in effects if name not in more + no_more]
    sentences = [f"Movement of the choice over that of seeds alone, strongest first: {numbers}."]
    if more:
        sentences.append(f"More than seeds: {join_words(more)}.")
    if no_more:
        sentences.append(f"No practical movement beyond seeds: {join_words(no_more)}.")
    if unclear:
        sentences.append(f"Not told apart from seeds: {join_words(unclear)}.")
    return sentences


def _share_sentences(shares: Mapping[str, PairedDifference], confidence: float) -> list[str]:
    if not shares or shares["bn_share"].estimate.value is None:
        return []
    whole, value = shares["bn_share"], shares["bn_share"].estimate.value
    parts = [
        f"{words} {show_estimate(shares[name].estimate, confidence, sign=True)}"
        for name, words in (("bn_share_mean", "mean weights"), ("bn_share_var", "variance weights"))
    ]
    return [
        f"At B = {whole.reference} the BN share is {show_estimate(_magnitude(whole.estimate), confidence)} "
        f"{'above' if value >= 0 else 'below'} that at B = {whole.other} ({'; '.join(parts)})."
    ]


def _magnitude(estimate: Estimate) -> Estimate:
    """The estimate with its sign turned, where that makes it positive: the sentence says "below"."""
    if estimate.value is None or estimate.value >= 0:
        return estimate
    low = None if estimate.high is None else -estimate.high
    high = None if estimate.low is None else -estimate.low
    return Estimate(value=-estimate.value, low=low, high=high, n=estimate.n)


def _rank(block: _Block, confidence: float, statistic: str | None = None) -> dict[str, Estimate]:
    """The effect of every factor, the strongest first."""
    effects = {name: factor_effect(item, confidence, statistic) for name, item in block.distances.items()}
    return dict(sorted(effects.items(), key=lambda pair: -(pair[1].value or 0)))


def _effects(
    block: _Block, contrasts: Mapping[tuple[str, str], Estimate], shares: Mapping[str, PairedDifference],
    confidence: float,
) -> list[Effect]:  # fmt: skip
    rows = [
        _ratio_effect(measure, name, item, block, name)
        for measure, statistic in (("effect", None), ("effect_mean", "mean"), ("effect_var", "var"))
        for name, item in _rank(block, confidence, statistic).items()
    ]
    rows += [
        _ratio_effect("effect_ratio", f"{a} / {b}", item, block, a) for (a, b), item in contrasts.items()
    ]
    return rows + [
        difference_effect(name, f"B {item.reference} - B {item.other}", item) for name, item in shares.items()
    ]


def _ratio_effect(measure: str, comparison: str, estimate: Estimate, block: _Block, factor: str) -> Effect:
    return Effect(
        measure=measure, comparison=comparison, estimate=estimate.value, low=estimate.low, high=estimate.high,
        n=estimate.n, n_pairs=block.distances[factor].n_cell_pairs, n_pairs_planned=block.planned_pairs[factor],
    )  # fmt: skip


def _needs(
    verdict: Verdict, records: StudyRecords, block: _Block, contrasts: Mapping[tuple[str, str], Estimate]
) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    if records.reference_norm is None:
        return ["trials of a switch norm (sn)"]
    needs = [f"{name} as a factor" for name in STRONG if not block.planned_pairs.get(name)]
    if not any(block.planned_pairs.get(name) for name in WEAK):
        needs.append(f"one of {', '.join(WEAK)} as a factor")
    if not block.covered:
        needs.append(f"results in more cells: {block.n_cells} of {block.n_cells_planned} are complete")
    if block.n_replicates < 3:
        needs.append(f"at least 3 replicates of every cell, better 5: there are {block.n_replicates}")
    confidence = records.study.analysis.confidence
    return needs + [need for pair, item in contrasts.items() if (need := _need(pair, item, confidence))]


def _need(pair: tuple[str, str], estimate: Estimate, confidence: float) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None or estimate.low > 1:
        return ""
    half_width = float(np.log(estimate.high / estimate.low)) / 2
    target = float(max(np.log(estimate.value), np.log(MARGIN / estimate.value)))
    return f"{pair[0]} over {pair[1]}: {need_replicates(half_width, target, estimate.n, confidence)}"
