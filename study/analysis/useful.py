"""Question 1: is it useful that each layer picks its own normalizer?

The paper (arXiv 1811.07727) says that distinct normalizers improve learning and generalization. Here the switch norm
is compared with every other level of the factor `norm`: single normalizers, and controls that take a part of the
choice away (fixed, shared or hard weights), each at equal cell and equal replicate.
"""

from __future__ import annotations

from collections.abc import Sequence

from study.analysis.answers import (
    MIN_CELLS,
    Answer,
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
from study.analysis.statistics import PairedDifference, paired_differences
from study.norms.names import parse_norm

TITLE = "Is it useful that each layer picks its own normalizer?"
MARGIN = 0.005  # accuracy; a gain below half a point in a hundred is no practical gain

METRIC_WORDS = {
    "val_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "train_loss": "training loss",
    "generalization_gap": "generalization gap",
}


def answer_useful(records: StudyRecords) -> Answer:
    """Compares the reference switch norm with every other norm of the study. Works on any part of a study."""
    study, reference = records.study, records.reference_norm
    others = [norm for norm in records.levels("norm") if norm != reference]
    metric, confidence = study.analysis.metric, study.analysis.confidence
    comparisons = [_compare(records, reference, norm, metric) for norm in others] if reference else []
    secondary = {
        name: [_compare(records, reference, norm, name) for norm in others] if reference else []
        for name in ("train_loss", "generalization_gap")
    }
    verdict = decide(comparisons)
    return Answer(
        name="useful", title=TITLE, verdict=verdict,
        answer=_sentences(records, verdict, comparisons, secondary),
        rule=_rule(metric, confidence),
        effects=[
            difference_effect(name, f"{reference} - {item.other}", item)
            for name, items in {metric: comparisons, **secondary}.items() for item in items
        ],
        n_done=len(records.done), n_planned=records.n_planned,
        needs=_needs(records, verdict, comparisons),
    )  # fmt: skip


def decide(comparisons: Sequence[PairedDifference]) -> Verdict:
    """The rule that `_rule` puts into words, on differences of accuracy (reference minus other)."""
    if any(_refutes(item) for item in comparisons):
        return "not supported"
    if any(_is_single(item) for item in comparisons) and all(_confirms(item) for item in comparisons):
        return "supported"
    return "not enough evidence"


def _confirms(item: PairedDifference) -> bool:
    low = item.estimate.low
    return (
        _covers(item) and low is not None and low > 0 and not item.missing.get(f"{item.reference} diverged")
    )


def _refutes(item: PairedDifference) -> bool:
    high = item.estimate.high
    return (
        _covers(item)
        and high is not None
        and high < MARGIN
        and not item.missing.get(f"{item.other} diverged")
    )


def _covers(item: PairedDifference) -> bool:
    return covers(item.n_cells, item.n_cells_diverged, item.n_cells_planned)


def _is_single(item: PairedDifference) -> bool:
    return not parse_norm(str(item.other)).is_switch


def _rule(metric: str, confidence: float) -> str:
    return (
        f"Above every other norm. Supported: for every single normalizer and every control of the study, the "
        f"{confidence * 100:g} % interval of the difference in {METRIC_WORDS[metric]} (switch norm minus the other, last "
        f"epoch, paired at equal cell and replicate, averaged over cells) lies above 0, and there is a single normalizer "
        f"to compare with. Not supported: for any of them it lies below {MARGIN:g}, so that no practical gain is left. "
        f"Otherwise not enough evidence. Each comparison needs {MIN_CELLS * 100:g} % of its planned cells. A run that "
        f"diverged alone has no accuracy, so it bars the verdict that its absence would favour. Training loss and "
        f"generalization gap are shown and decide nothing."
    )


def _sentences(
    records: StudyRecords,
    verdict: Verdict,
    main: list[PairedDifference],
    secondary: dict[str, list[PairedDifference]],
) -> str:
    if not main:
        return "The study holds no switch norm together with another norm, so there is nothing to compare."
    study, reference = records.study, main[0].reference
    confidence, measured = (
        study.analysis.confidence,
        [item for item in main if item.estimate.value is not None],
    )
    if not measured:
        return f"No pair of {reference} and another norm has finished."
    lost = [item for item in main if _refutes(item)]
    opening = {
        "supported": f"Yes, in this study: {reference} is better than {_names(main)}.",
        "not supported": f"No, in this study: {reference} gains less than {MARGIN:g} over {_names(lost)}.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    differences = "; ".join(
        f"{show_estimate(item.estimate, confidence, sign=True)} against {item.other}" for item in measured
    )
    return " ".join(
        [
            opening,
            f"{METRIC_WORDS[study.analysis.metric].capitalize()} of {reference} minus the other's: {differences}.",
            *(_compare_words(name, items) for name, items in secondary.items()),
            _missing_sentence(records),
        ]
    )


def _compare_words(metric: str, items: Sequence[PairedDifference]) -> str:
    """Which differences the intervals tell apart; the numbers are in the table of effects."""
    lower = [item for item in items if item.estimate.high is not None and item.estimate.high < 0]
    higher = [item for item in items if item.estimate.low is not None and item.estimate.low > 0]
    open_ = [item for item in items if item not in lower and item not in higher]
    parts = [
        f"{word} {_names(group)}" for word, group in (
            ("lower than with", lower), ("higher than with", higher), ("not told apart from", open_)
        ) if group
    ]  # fmt: skip
    return f"Its {METRIC_WORDS[metric]} is {join_words(parts)}."


def _missing_sentence(records: StudyRecords) -> str:
    trials = records.trials[records.trials["state"] != "done"]
    if trials.empty:
        return "Every planned run is in."
    parts = [
        f"{norm} {show_states(tally(group['state']))}" for norm, group in trials.groupby("norm", sort=False)
    ]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def _needs(records: StudyRecords, verdict: Verdict, comparisons: Sequence[PairedDifference]) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    if not any(_is_single(item) for item in comparisons):
        return [
            "a factor norm that holds a switch norm (sn) and at least one single normalizer (bn, gn, in, ln)"
        ]
    needs = [need for item in comparisons if (need := _need(item, records.study.analysis.confidence))]
    return needs


def _need(item: PairedDifference, confidence: float) -> str:
    pair, estimate = f"{item.reference} against {item.other}", item.estimate
    if not _covers(item) or estimate.value is None:
        return (
            f"{pair}: results in more cells ({item.n_cells} of {item.n_cells_planned} are complete; "
            f"missing pairs: {show_states(item.missing)})"
        )
    if estimate.low is None or estimate.high is None:
        return (
            f"{pair}: replicates that differ"
            if estimate.n > 1
            else f"{pair}: at least 2 replicates, better 5"
        )
    if _confirms(item):
        return ""
    if estimate.low > 0 or estimate.high < MARGIN:
        return f"{pair}: runs that do not diverge ({show_states(item.missing)})"
    # Either end of the interval may settle it: above 0, or below the margin.
    target = max(estimate.value, MARGIN - estimate.value)
    half_width = (estimate.high - estimate.low) / 2
    return f"{pair}: {need_replicates(half_width, target, estimate.n, confidence)}, if their spread stays as it is"


def _compare(records: StudyRecords, reference: str, other: str, metric: str) -> PairedDifference:
    return paired_differences(
        records.trials, factors=list(records.study.factors), factor="norm", reference=reference, other=other,
        metric=metric, confidence=records.study.analysis.confidence,
    )  # fmt: skip


def _names(items: Sequence[PairedDifference]) -> str:
    return join_words([item.other for item in items])
