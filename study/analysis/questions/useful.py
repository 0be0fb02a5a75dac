"""Question 1: is it useful that each layer picks its own normalizer?

The paper (arXiv 1811.07727) says that distinct normalizers improve learning and generalization. Here the switch norm is
compared with every other level of the factor `norm`: single normalizers, and controls that take the layers' own choice
away (fixed or shared weights), each at equal cell and equal replicate. Norms are compared among trials from scratch;
what warm starts add is shown beside it (`warm_starts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from study.analysis.questions import useful_sentences as sentences
from study.analysis.questions.answers import (
    Answer,
    Effect,
    Judgement,
    cell_effects,
    difference_effects,
    interaction_effects,
)
from study.analysis.questions.choices import select_choices
from study.analysis.questions.level_comparisons import build_claims, compare_levels
from study.analysis.questions.seed_sources import format_seed_sources, seed_deviation_rows
from study.analysis.questions.tuned import compare_tuned
from study.analysis.questions.verdicts import OPEN, SUPPORTED, Verdict, find_below, judge, judge_all
from study.analysis.questions.warm_start_sentences import format_starts_rule
from study.analysis.questions.warm_starts import NO_MIX, NOT_OWN, compare_starts, describe_starts
from study.analysis.records import StudyRecords
from study.analysis.statistics.displacement import relative_displacement
from study.analysis.statistics.distinctness import layer_distances, layer_weights
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.statistics.time_to_target import TIME
from study.norms.names import parse_norm

TITLE = "Is it useful that each layer picks its own normalizer?"
# Controls in which a layer does not pick its own normalizer. With ssn or tied weights, it does.
CONTROLS = ("uniform", "random", "shared", "stage")


def answer_useful(records: StudyRecords) -> Answer:
    """Compares the reference switch norm with every other norm of the study. Works on any part of a study."""
    metric, confidence, margin = records.study.metric, records.confidence, records.margin(records.study.metric)
    measures = (metric, "train_loss", "generalization_gap", TIME)
    differences = {name: compare_norms(records, name) for name in measures}
    sparse = {name: compare_sparse(records, name) for name in measures}
    starts = {name: compare_starts(records, name) for name in measures}
    tuned = compare_tuned(records)
    distinct, opponents = measure_layers(records), find_opponents(differences[metric])
    verdict = decide(differences[metric], margin, confidence)
    seeds = seed_deviation_rows(records, records.from_scratch)
    rows = {name: [*differences[name], *sparse[name], *starts[name]] for name in measures}
    text = [
        *_compose_text(records, verdict, differences),
        *sentences.format_sparse(sparse[metric], confidence),
        *sentences.format_censored(rows[TIME]),
        *(sentences.format_distinctness(records.reference_norm, row.estimate, confidence) for row in distinct[:1]),
        sentences.format_missing_runs(records.trials),
        *sentences.format_tuned(tuned, records),
        *format_seed_sources(seeds),
        *describe_starts(records, starts),
    ]
    rule = sentences.format_useful_rule(records.measures[metric].label, CONTROLS, margin, confidence)
    return Answer(
        title=TITLE, verdict=verdict, answer=" ".join(text),
        rule=" ".join([rule, *[format_starts_rule(NOT_OWN, NO_MIX, margin)] * bool(starts[metric])]),
        effects=[
            *(row for name in measures for row in difference_effects(records.measures[name], rows[name])),
            *(row for item in opponents for row in cell_effects(records.measures["cell_difference"], item)),
            *interaction_effects(records.measures["interaction"], opponents),
            *difference_effects(records.measures["tuned_difference"], tuned), *seeds, *distinct,
        ],
        n_done=len(records.done), n_planned=records.n_planned,
        needs=_list_needs(verdict, opponents, margin, confidence),
    )  # fmt: skip


def judge_useful(records: StudyRecords) -> Judgement:
    """The verdict of `answer_useful` alone, with the differences that decide."""
    metric = records.study.metric
    differences = compare_norms(records, metric)
    verdict = decide(differences, records.margin(metric), records.confidence)
    return Judgement(verdict=verdict, effects=difference_effects(records.measures[metric], differences))


def decide(comparisons: Sequence[PairedDifference], margin: float, confidence: float) -> Verdict:
    """The verdict on differences of a metric, reference minus other; `format_useful_rule` says it in words."""
    opponents = find_opponents(comparisons)
    verdict = judge_all(build_claims(opponents, margin), confidence)
    return verdict if verdict != SUPPORTED or any(map(_is_single, opponents)) else OPEN


def find_opponents(comparisons: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The comparisons that decide: with a norm whose layers do not pick their own normalizer."""
    return [item for item in comparisons if _is_held_back(str(item.other))]


def compare_norms(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The reference norm minus every other norm of the study."""
    reference = records.reference_norm
    return [
        compare_levels(records, records.from_scratch, factor="norm", reference=reference, other=norm, metric=metric)
        for norm in records.levels("norm") if reference is not None and norm != reference
    ]  # fmt: skip


def compare_sparse(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The first free sparse switch norm, unless it is the reference, minus every norm whose layers do not choose."""
    free = (norm for norm in records.levels("norm") if parse_norm(norm).kind == "ssn" and not _is_held_back(norm))
    sparse = next(free, None)
    if sparse is None or sparse == records.reference_norm:
        return []
    return [
        compare_levels(records, records.from_scratch, factor="norm", reference=sparse, other=norm, metric=metric)
        for norm in records.levels("norm") if _is_held_back(norm)
    ]  # fmt: skip


def measure_layers(records: StudyRecords) -> list[Effect]:
    """How distinct the layers of the reference norm's backbones are, over all weights and over those of each axis.

    Pairs are pairs of replicates of a cell.
    """
    trials = select_choices(records)
    weights = layer_weights(records.switch[records.switch["key"].isin(trials["key"])], records.space)
    done = trials[trials["state"].eq("done") & trials["key"].isin([key for key in weights if len(weights[key]) > 1])]
    replicates = sorted(trials["replicate"].unique())
    cells = []
    for _, cell in done.groupby("trial_id", sort=False):
        of_cell = {replicate: weights[key] for replicate, key in zip(cell["replicate"], cell["key"], strict=True)}
        missing = np.full_like(next(iter(of_cell.values())), np.nan)
        cells.append(np.stack([of_cell.get(replicate, missing) for replicate in replicates]))
    if not cells:
        return []
    moments, planned = layer_distances(cells), trials.groupby("trial_id").size()
    counts = done.groupby("trial_id").size()
    return [
        Effect(
            measure=records.measures[measure], comparison=f"layers of {records.reference_norm}",
            estimate=relative_displacement(moments, records.confidence, axis),
            n_pairs=int((counts * (counts - 1) // 2).sum()), n_pairs_planned=int((planned * (planned - 1) // 2).sum()),
            trials=sorted(done.index.tolist()),
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


def _compose_text(
    records: StudyRecords, verdict: Verdict, differences: Mapping[str, Sequence[PairedDifference]]
) -> list[str]:
    """The sentences on the differences between the reference norm and the others."""
    metric, confidence = records.study.metric, records.confidence
    main = differences[metric]
    if not main:
        return ["The study does not compare a switch norm with another norm."]
    measured, reference = [item for item in main if item.estimate.value is not None], main[0].reference
    if not measured:
        return [f"No run of {reference} has finished together with its partner of another norm."]
    opponents = find_opponents(main)
    claims = build_claims(opponents, records.margin(metric))
    first = "The study does not compare a switch norm with a norm whose layers do not choose."
    if opponents:
        first = sentences.open_useful(verdict, opponents, claims, find_below(claims, confidence), confidence)
    numbers = sentences.format_differences(measured, confidence)
    return [
        first,
        f"{records.measures[metric].label.capitalize()} of {reference} minus that of the other: {numbers}.",
        *sentences.format_few_pairs(opponents),
        *sentences.format_divergence(opponents),
        *sentences.format_interactions(opponents, confidence),
        *(
            sentences.format_distinguished(f"Its {records.measures[name].label}", items, confidence)
            for name, items in differences.items() if name != metric
        ),
    ]  # fmt: skip


def _list_needs(verdict: Verdict, opponents: Sequence[PairedDifference], margin: float, confidence: float) -> list[str]:
    """What would decide an undecided question."""
    if verdict != OPEN:
        return []
    if not any(map(_is_single, opponents)):
        return ["a factor norm that holds a switch norm (sn) and at least one single normalizer (bn, gn, in, ln)"]
    claims = build_claims(opponents, margin)
    return [
        f"{item.reference} against {item.other}: {sentences.format_pair_needs(item, claim, confidence, len(opponents))}"
        for item, claim in zip(opponents, claims.values(), strict=True)
        if judge(claim, confidence) != SUPPORTED
    ]
