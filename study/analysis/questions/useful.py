"""Question 1: is it useful that each layer picks its own normalizer?

The paper (arXiv 1811.07727) says that distinct normalizers improve learning and generalization. Here the
switch norm is compared with every other level of the factor `norm`: single normalizers, and controls that
take the layers' own choice away (fixed or shared weights), each at equal cell and equal replicate.
Norms are compared from scratch alone; what trials that start from others say is shown beside it (`starts.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from study.analysis.questions.answers import (
    MIN_CELLS,
    Answer,
    Effect,
    Verdict,
    confirms,
    covers_pairs,
    difference_effects,
    format_distinguished,
    format_estimate,
    format_more_replicates,
    format_states,
    join_words,
    refuted,
)
from study.analysis.questions.factor_effects import RATIO_MARGIN, select_choices
from study.analysis.questions.level_comparisons import compare_levels
from study.analysis.questions.warm_starts import RULE, compare_starts, start_sentences
from study.analysis.records import StudyRecords
from study.analysis.statistics.distinctness import layer_distances, layer_weights
from study.analysis.statistics.intervals import cell_numbers, complete_block, replicate_interval, replicates_needed
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.statistics.profiles import factor_effect
from study.analysis.statistics.time_to_target import TIME
from study.config.schema import SCORE_MARGIN
from study.norms.names import parse_norm

TITLE = "Is it useful that each layer picks its own normalizer?"
# Controls in which a layer does not pick its own normalizer. With ssn or tied weights, it does.
CONTROLS = ("uniform", "random", "shared", "stage")


def answer_useful(records: StudyRecords) -> Answer:
    """Compares the reference switch norm with every other norm of the study. Works on any part of a study."""
    metric, confidence = records.study.metric, records.study.analysis.confidence
    measures = (metric, "train_loss", "generalization_gap", TIME)
    differences = {name: compare_norms(records, name) for name in measures}
    sparse = {name: compare_sparse(records, name) for name in measures}
    starts = {name: compare_starts(records, name) for name in measures}
    distinct = measure_layers(records)
    verdict = decide(differences[metric], confidence)
    rows = {name: [*differences[name], *sparse[name], *starts[name]] for name in measures}
    sentences = [_sentences(records, verdict, differences), *_sparse_sentences(sparse[metric], confidence)]
    sentences += [*_censored_sentences(rows[TIME]), *_layer_sentences(records, distinct)]
    return Answer(
        title=TITLE, verdict=verdict,
        answer=" ".join([*sentences, _missing_sentence(records), *start_sentences(records, starts)]),
        rule=" ".join([_rule(records.measures[metric].label, confidence), *[RULE] * bool(starts[metric])]),
        effects=[*(effect for name in measures for effect in difference_effects(records.measures[name], rows[name])), *distinct],
        n_done=len(records.done), n_planned=records.n_planned,
        needs=_needs(verdict, differences[metric], confidence),
    )  # fmt: skip


def decide(comparisons: Sequence[PairedDifference], confidence: float) -> Verdict:
    """The rule that `_rule` puts into words, on differences of accuracy (reference minus other)."""
    opponents = _opponents(comparisons)
    if refuted(opponents, confidence):
        return "not supported"
    if any(_is_single(item) for item in opponents) and all(confirms(item) for item in opponents):
        return "supported"
    return "not enough evidence"


def compare_norms(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The reference norm minus every other norm of the study."""
    reference = records.reference_norm
    return [
        compare_levels(records, records.plain, factor="norm", reference=reference, other=norm, metric=metric)
        for norm in records.levels("norm") if reference is not None and norm != reference
    ]  # fmt: skip


def compare_sparse(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The first free sparse switch norm, where it is not the reference, minus every norm whose layers do not choose."""
    free = (norm for norm in records.levels("norm") if parse_norm(norm).kind == "ssn" and not _is_held_back(norm))
    sparse = next(free, None)
    if sparse is None or sparse == records.reference_norm:
        return []
    return [
        compare_levels(records, records.plain, factor="norm", reference=sparse, other=norm, metric=metric)
        for norm in records.levels("norm") if _is_held_back(norm)
    ]  # fmt: skip


def measure_layers(records: StudyRecords) -> list[Effect]:
    """How distinct the layers of the reference norm's backbones are, on all weights and on those of each statistic.

    In the complete block of cells and replicates. Pairs are those of replicates of a cell.
    """
    trials = select_choices(records)
    weights = layer_weights(records.switch[records.switch["key"].isin(trials["key"])], records.space)
    table = trials.assign(cell=cell_numbers(trials, ["trial_id"]), row=trials.index)
    chosen = table[table["state"].eq("done") & table["key"].isin([key for key in weights if len(weights[key]) > 1])]
    grid = chosen.pivot(index="cell", columns="replicate", values="row")
    rows, columns = complete_block(grid.notna().to_numpy())
    if not rows.size:
        return []
    block = grid.iloc[rows, columns].astype(int).to_numpy()
    keys = trials["key"].loc[block.ravel()].to_numpy().reshape(block.shape)
    distances = layer_distances([np.array([weights[key] for key in cell]) for cell in keys])
    planned = table.groupby("cell").size()
    return [
        Effect(
            measure=records.measures[measure], comparison=f"layers of {records.reference_norm}",
            estimate=factor_effect(distances, records.study.analysis.confidence, axis),
            n_pairs=rows.size * math.comb(columns.size, 2), n_pairs_planned=int((planned * (planned - 1) // 2).sum()),
            trials=sorted(block.ravel().tolist()),
        )
        for measure, axis in (
            ("distinctness", None),
            *((f"distinctness_{name}", number) for number, name in enumerate(records.space.axis_names)),
        )
    ]  # fmt: skip


def _is_held_back(norm: str) -> bool:
    """Whether the layers of a norm do not pick their own normalizer."""
    spec = parse_norm(norm)
    return len(spec.pool) == 1 or spec.control in CONTROLS


def _is_single(item: PairedDifference) -> bool:
    return len(parse_norm(str(item.other)).pool) == 1


def _opponents(comparisons: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Those with a norm whose layers do not pick their own normalizer."""
    return [item for item in comparisons if _is_held_back(str(item.other))]


def _rule(label: str, confidence: float) -> str:
    return (
        f"Above every norm without a choice. Supported: against every single normalizer (at least one) and "
        f"every control ({', '.join(CONTROLS)}) of the study, the {confidence * 100:g} % interval of the "
        f"difference in {label} (switch norm minus the other, last epoch, paired at equal cell and "
        f"replicate, averaged over cells) lies above 0; all must, so no correction is needed. Not supported: against "
        f"any of them it lies below {SCORE_MARGIN:g}, so no practical gain is left; one is enough, so the one-sided p-values "
        f"of a gain of {SCORE_MARGIN:g} or more are adjusted by Holm over all of them, to the level {(1 - confidence) / 2:g} "
        f"(one alone: the interval lies below). Otherwise: not enough evidence. A comparison needs "
        f"{MIN_CELLS * 100:g} % of its planned cells. A run that diverged alone has no accuracy: it bars the "
        f"verdict that its absence would favour. Training loss, generalization gap and time to target (told apart "
        f"where the two-sided p-value, adjusted by Holm over all with the same reference, is below "
        f"{1 - confidence:.3g}), norms whose layers also pick their own (ssn, sn-tied, other pools), what ssn gains, "
        f"and how distinct layers are (more than seeds: the interval lies above 1; no more: below {RATIO_MARGIN:g}) "
        f"are shown and do not decide."
    )


def _sentences(records: StudyRecords, verdict: Verdict, differences: Mapping[str, Sequence[PairedDifference]]) -> str:
    metric, confidence = records.study.metric, records.study.analysis.confidence
    main = differences[metric]
    if not main:
        return "The study does not compare a switch norm with another norm."
    measured = [item for item in main if item.estimate.value is not None]
    if not measured:
        return f"No run of {main[0].reference} has finished together with its partner of another norm."
    opponents = _opponents(main)
    opening = {
        "supported": f"Yes, in this study: {main[0].reference} is better than {_names(opponents)}.",
        "not supported": f"No, in this study: {main[0].reference} gains less than {SCORE_MARGIN:g} over "
        f"{_names(refuted(opponents, confidence))}.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    what = f"{records.measures[metric].label.capitalize()} of {main[0].reference} minus that of the other"
    rest = [
        format_distinguished(f"Its {records.measures[name].label}", items, confidence)
        for name, items in differences.items() if name != metric
    ]  # fmt: skip
    return " ".join([opening, f"{what}: {_show_differences(measured, confidence)}.", *rest])


def _show_differences(items: Sequence[PairedDifference], confidence: float) -> str:
    """Each with its interval; of many, which the table holds, the smallest and the largest."""
    ranked = sorted(items, key=lambda item: item.estimate.value or 0.0)
    numbers = [f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}" for item in ranked]
    if len(numbers) > 4:
        return f"from {numbers[0]} (the smallest) to {numbers[-1]} (the largest)"
    return "; ".join(numbers)


def _sparse_sentences(items: Sequence[PairedDifference], confidence: float) -> list[str]:
    measured = [item for item in items if item.estimate.value is not None]
    if not measured:
        return []
    return [f"Of {measured[0].reference}, which does not decide: {_show_differences(measured, confidence)}."]


def _censored_sentences(items: Sequence[PairedDifference]) -> list[str]:
    late = [f"{item.censored} in {item.reference} - {item.other}" for item in items if item.censored]
    if not late:
        return []
    return [f"Runs that never reached the target, counted as one epoch more than they had: {join_words(late)}."]


def _layer_sentences(records: StudyRecords, effects: Sequence[Effect]) -> list[str]:
    if not effects:
        return []
    reference, item = records.reference_norm, effects[0].estimate
    if item.value is None:
        return [f"Whether layers of {reference} differ more than seeds move them takes replicates that differ."]
    number = format_estimate(item, records.study.analysis.confidence, digits=2)
    said = "more than" if item.above(1) else "no more than" if item.below(RATIO_MARGIN) else "not told apart from"
    return [f"Distance between layers of {reference} over that between replicates of a layer: {number}, {said} seeds."]


def _missing_sentence(records: StudyRecords) -> str:
    trials = records.trials[records.trials["state"].ne("done")]
    if trials.empty:
        return "Every planned run is in."
    parts = [f"{norm} {format_states(group['state'])}" for norm, group in trials.groupby("norm", sort=False)]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def _needs(verdict: Verdict, comparisons: Sequence[PairedDifference], confidence: float) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    opponents = _opponents(comparisons)
    if not any(_is_single(item) for item in opponents):
        return ["a factor norm that holds a switch norm (sn) and at least one single normalizer (bn, gn, in, ln)"]
    return [
        f"{item.reference} against {item.other}: {_need(item, confidence, len(opponents))}"
        for item in opponents
        if not confirms(item)
    ]


def _need(item: PairedDifference, confidence: float, n_opponents: int) -> str:
    estimate, missing = item.estimate, format_states(Counter(item.missing).elements())
    if estimate.value is None or not covers_pairs(item):
        complete = f"{item.n_cells} of {item.n_cells_planned} cells complete"
        return f"results of {_say_lacking(item)} ({complete}; missing pairs: {missing})"
    if estimate.low is None or estimate.high is None:
        if estimate.n > 1:
            return "replicates that differ"
        return "at least 1 more replicate of every cell (2 allow an interval), better 4 more"
    if estimate.above(0) or (estimate.below(SCORE_MARGIN) and item.missing.get(f"{item.other} diverged")):
        return f"runs that do not diverge (missing pairs: {missing})"
    return format_more_replicates(_replicates_needed(item, confidence, n_opponents), estimate.n)


def _say_lacking(item: PairedDifference) -> str:
    """`3 more replicates at B = 2`, of the first cells that are not complete."""
    lacking = [
        f"{number} more replicate{'s' * (number != 1)}" + f" at {cell}" * bool(cell)
        for cell, number in item.cells_missing.items()
    ]
    more = len(lacking) - 3
    return join_words([*lacking[:3], *[f"those of {more} more cells"] * (more > 0)] or ["both norms in a cell"])


def _replicates_needed(item: PairedDifference, confidence: float, n_opponents: int) -> int | None:
    """Replicates that would put the interval above 0, or below `SCORE_MARGIN` by the level that Holm asks of the first."""
    value, n = item.estimate.value or 0.0, item.estimate.n
    needed = []
    for target, level in ((value, confidence), (SCORE_MARGIN - value, 1 - (1 - confidence) / n_opponents)):
        interval = replicate_interval(item.per_replicate, level)
        half_width = ((interval.high or 0.0) - (interval.low or 0.0)) / 2
        needed.append(replicates_needed(half_width, target, n, level))
    return min((number for number in needed if number is not None), default=None)


def _names(items: Sequence[PairedDifference]) -> str:
    return join_words([item.other for item in items] or ["none"])
