"""Question 1: is it useful that each layer picks its own normalizer?

The paper (arXiv 1811.07727) says that distinct normalizers improve learning and generalization. Here the
switch norm is compared with every other level of the factor `norm`: single normalizers, and controls that
take the layers' own choice away (fixed or shared weights), each at equal cell and equal replicate.
Norms are compared from scratch alone; what trials that start from others say is shown beside it (`starts.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from study.analysis.answers import (
    MARGIN,
    MIN_CELLS,
    Answer,
    Verdict,
    confirms,
    covers_pairs,
    difference_effect,
    join_words,
    refutes,
    say_replicates_needed,
    show_estimate,
    show_states,
    tell_apart,
)
from study.analysis.measures import MEASURES
from study.analysis.paired import PairedDifference, paired_differences
from study.analysis.records import StudyRecords
from study.analysis.starts import RULE, compare_starts, start_sentences
from study.norms.names import parse_norm

TITLE = "Is it useful that each layer picks its own normalizer?"
# Controls in which a layer does not pick its own normalizer. With ssn or tied weights, it does.
CONTROLS = ("uniform", "random", "shared", "stage")


def answer_useful(records: StudyRecords) -> Answer:
    """Compares the reference switch norm with every other norm of the study. Works on any part of a study."""
    metric = records.study.metric
    differences = {name: _compare(records, name) for name in (metric, "train_loss", "generalization_gap")}
    starts = {name: compare_starts(records, name) for name in differences}
    verdict = decide(differences[metric])
    return Answer(
        title=TITLE, verdict=verdict,
        answer=" ".join([_sentences(records, verdict, differences), *start_sentences(records, starts)]),
        rule=" ".join([_rule(metric, records.study.analysis.confidence), *[RULE] * bool(starts[metric])]),
        effects=[
            difference_effect(name, f"{item.reference} - {item.other}", item)
            for name, items in differences.items() for item in [*items, *starts[name]]
        ],
        n_done=len(records.done), n_planned=records.n_planned,
        needs=_needs(verdict, differences[metric], records.study.analysis.confidence),
    )  # fmt: skip


def decide(comparisons: Sequence[PairedDifference]) -> Verdict:
    """The rule that `_rule` puts into words, on differences of accuracy (reference minus other)."""
    opponents = _opponents(comparisons)
    if any(refutes(item) for item in opponents):
        return "not supported"
    if any(_is_single(item) for item in opponents) and all(confirms(item) for item in opponents):
        return "supported"
    return "not enough evidence"


def _is_single(item: PairedDifference) -> bool:
    spec = parse_norm(str(item.other))
    return not spec.is_switch or len(spec.pool) == 1


def _opponents(comparisons: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Those with a norm whose layers do not pick their own normalizer."""
    return [item for item in comparisons if _is_single(item) or parse_norm(str(item.other)).control in CONTROLS]


def _compare(records: StudyRecords, metric: str) -> list[PairedDifference]:
    reference = records.reference_norm
    return [
        paired_differences(
            records.plain, factors=list(records.study.factors), factor="norm", reference=reference,
            other=norm, metric=metric, confidence=records.study.analysis.confidence,
        )
        for norm in records.levels("norm") if reference is not None and norm != reference
    ]  # fmt: skip


def _rule(metric: str, confidence: float) -> str:
    return (
        f"Above every norm without a choice. Supported: against every single normalizer (at least one) and "
        f"every control ({', '.join(CONTROLS)}) of the study, the {confidence * 100:g} % interval of the "
        f"difference in {MEASURES[metric].label} (switch norm minus the other, last epoch, paired at equal cell and "
        f"replicate, averaged over cells) lies above 0. Not supported: against any of them it lies below "
        f"{MARGIN:g}, so no practical gain is left. Otherwise: not enough evidence. A comparison needs "
        f"{MIN_CELLS * 100:g} % of its planned cells. A run that diverged alone has no accuracy: it bars the "
        f"verdict that its absence would favour. Training loss, generalization gap, and norms whose layers "
        f"also pick their own (ssn, sn-tied, other pools) are shown and do not decide."
    )


def _sentences(records: StudyRecords, verdict: Verdict, differences: Mapping[str, Sequence[PairedDifference]]) -> str:
    metric, confidence = records.study.metric, records.study.analysis.confidence
    main = differences[metric]
    if not main:
        return "The study does not compare a switch norm with another norm."
    measured = [item for item in main if item.estimate.value is not None]
    if not measured:
        return f"No run of {main[0].reference} has finished together with its partner of another norm."
    refuting = [item for item in _opponents(main) if refutes(item)]
    opening = {
        "supported": f"Yes, in this study: {main[0].reference} is better than {_names(_opponents(main))}.",
        "not supported": f"No, in this study: {main[0].reference} gains less than {MARGIN:g} over {_names(refuting)}.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    measured.sort(key=lambda item: item.estimate.value or 0.0)
    numbers = [f"{show_estimate(item.estimate, confidence, sign=True)} against {item.other}" for item in measured]
    if len(numbers) > 4:  # the table has them all
        numbers = [f"from {numbers[0]} (the smallest) to {numbers[-1]} (the largest)"]
    rest = [tell_apart(f"Its {MEASURES[name].label}", items) for name, items in differences.items() if name != metric]
    what = f"{MEASURES[metric].label.capitalize()} of {main[0].reference} minus that of the other"
    return " ".join([opening, f"{what}: {'; '.join(numbers)}.", *rest, _missing_sentence(records)])


def _missing_sentence(records: StudyRecords) -> str:
    trials = records.trials[records.trials["state"].ne("done")]
    if trials.empty:
        return "Every planned run is in."
    parts = [f"{norm} {show_states(group['state'])}" for norm, group in trials.groupby("norm", sort=False)]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def _needs(verdict: Verdict, comparisons: Sequence[PairedDifference], confidence: float) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    if not any(_is_single(item) for item in comparisons):
        return ["a factor norm that holds a switch norm (sn) and at least one single normalizer (bn, gn, in, ln)"]
    return [
        f"{item.reference} against {item.other}: {_need(item, confidence)}"
        for item in _opponents(comparisons)
        if not confirms(item)
    ]


def _need(item: PairedDifference, confidence: float) -> str:
    estimate, missing = item.estimate, show_states(Counter(item.missing).elements())
    if estimate.value is None or not covers_pairs(item):
        complete = f"{item.n_cells} of {item.n_cells_planned} complete"
        return f"results in more cells ({complete}; missing pairs: {missing})"
    if estimate.low is None or estimate.high is None:
        return "replicates that differ" if estimate.n > 1 else "at least 2 replicates, better 5"
    if estimate.above(0) or estimate.below(MARGIN):
        return f"runs that do not diverge (missing pairs: {missing})"
    target = max(estimate.value, MARGIN - estimate.value)  # either end may settle it: above 0, or below the margin
    return say_replicates_needed((estimate.high - estimate.low) / 2, target, estimate.n, confidence)


def _names(items: Sequence[PairedDifference]) -> str:
    return join_words([item.other for item in items] or ["none"])
