"""Question 2: what impacts the choice?

The paper (arXiv 1811.07727) says that depth and batch size move it more than parameter initialization,
learning-rate decay and solver do. Here each factor is measured by how far its levels move the profile of
switch weights over how far seeds alone move it, and the BN share is compared between the extreme batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd

from study.analysis.questions.answers import MIN_CELLS, Answer, Effect, Verdict, join_words
from study.analysis.questions.factor_effects import (
    EFFECT,
    RATIO_MARGIN,
    ChoiceDistances,
    closing_sentences,
    common_needs,
    company_sentences,
    effect_rows,
    factor_row,
    factor_sentences,
    holm_p_values,
    measure_distances,
    replicates_need,
    select_choices,
    share_rows,
    share_sentences,
    tell_apart_from,
)
from study.analysis.questions.impact_details import find_dynamics, find_trends
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.profiles import FactorDistances, count_cell_pairs, effect_contrast

TITLE = "What impacts the choice?"
STRONG = ("depth", "batch_size")  # the paper's claim
WEAK = ("initialization", "decay", "solver")

Contrasts = Mapping[tuple[str, str], Estimate]


def answer_impacts(records: StudyRecords) -> Answer:
    """Ranks factors by how far they move the choices of the reference norm. Works on any part of a study."""
    confidence, trials = records.study.analysis.confidence, select_choices(records)
    factors = [name for name in records.study.factors if name != "norm"]
    distances = measure_distances(records.profiles, trials, factors, records.space)
    found = [find(records, trials) for find in (find_trends, find_dynamics)]
    contrasts = contrast_effects(distances.factors, confidence)
    verdict = decide(contrasts, confidence, covered=distances.covered)
    effects = [*_effects(distances, contrasts, confidence), *(effect for effects, _ in found for effect in effects)]
    said = [*share_sentences(effects), *(text for _, sentences in found for text in sentences)]
    sentences = _sentences(records, trials, verdict, distances, contrasts, said)
    return Answer(
        title=TITLE, verdict=verdict, answer=" ".join(sentences), rule=_rule(confidence), effects=effects,
        n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_needs(records, verdict, distances, contrasts),
    )  # fmt: skip


def contrast_effects(factors: Mapping[str, FactorDistances], confidence: float) -> dict[tuple[str, str], Estimate]:
    """The effect of each strong factor over that of each weak one, of those that vary."""
    pairs = [(strong, weak) for strong, weak in product(STRONG, WEAK) if {strong, weak} <= factors.keys()]
    return {pair: effect_contrast(factors[pair[0]], factors[pair[1]], confidence) for pair in pairs}


def decide(contrasts: Contrasts, confidence: float, *, covered: bool) -> Verdict:
    """The rule that `_rule` puts into words, on the ratios of effects, strong over weak."""
    if covered and lost_contrasts(contrasts, confidence):
        return "not supported"
    both = {strong for strong, _ in contrasts} == set(STRONG)
    if covered and both and all(item.above(1) for item in contrasts.values()):
        return "supported"
    return "not enough evidence"


def lost_contrasts(contrasts: Contrasts, confidence: float) -> list[str]:
    """The pairs whose ratio lies below `RATIO_MARGIN`. One is enough to refute the claim, so their number is adjusted for."""
    named = {f"{strong} over {weak}": item for (strong, weak), item in contrasts.items()}
    return tell_apart_from(named, RATIO_MARGIN, confidence, above=False)


def _rule(confidence: float) -> str:
    return (
        f"Strong above weak. {EFFECT} Not supported: for any pair of one of {' and '.join(STRONG)} and one of "
        f"{', '.join(WEAK)}, effect over effect lies below {RATIO_MARGIN:g} (one-sided t test; p, adjusted by Holm for the "
        f"number of pairs, below {(1 - confidence) / 2:g}). Else supported: {' and '.join(STRONG)} vary, with at least "
        f"one of the others, and for every such pair the {confidence * 100:g} % interval of effect over effect lies "
        f"above 1 (all must, so their number needs no adjustment). Otherwise: not enough evidence. It needs "
        f"{MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Effects belong to the levels that are "
        f"compared: levels further apart move more."
    )


def _sentences(
    records: StudyRecords, trials: pd.DataFrame, verdict: Verdict,
    distances: ChoiceDistances, contrasts: Contrasts, found: Sequence[str],
) -> list[str]:  # fmt: skip
    if records.reference_norm is None:
        return ["The study holds no switch norm, so there is no choice to look at."]
    if not len(distances.cells):
        return [f"No run of {records.reference_norm} has finished with switch weights."]
    confidence = records.study.analysis.confidence
    opening = "It cannot be said yet."
    if verdict == "supported":
        opening = f"Yes, in this study: {_side(contrasts, 0)} move the choice further than {_side(contrasts, 1)}."
    if verdict == "not supported":
        lost = join_words(lost_contrasts(contrasts, confidence))
        opening = f"No, in this study: the ratio of effects is below {RATIO_MARGIN:g} for {lost}."
    parts = [opening, *factor_sentences(distances, confidence), *found]
    parts += _gradient_batch_sentence(trials)
    parts += company_sentences(records.study, list(records.study.joint))
    return [*parts, *closing_sentences(records, trials)]


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


def _effects(distances: ChoiceDistances, contrasts: Contrasts, confidence: float) -> list[Effect]:
    p_values = holm_p_values({f"{a} / {b}": item for (a, b), item in contrasts.items()}, 1, confidence)
    ratios = [
        factor_row(distances, "effect_ratio", f"{a} / {b}", [a, b], item, p_values[f"{a} / {b}"])
        for (a, b), item in contrasts.items()
    ]
    return [*effect_rows(distances, confidence), *ratios, *share_rows(distances, confidence)]


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
    needs += common_needs(distances)
    for (strong, weak), item in contrasts.items():
        confidence = records.study.analysis.confidence
        more = [] if item.above(1) else replicates_need(distances, [strong, weak], item, confidence)
        needs += [f"{strong} against {weak}: {need}" for need in more]
    return needs
