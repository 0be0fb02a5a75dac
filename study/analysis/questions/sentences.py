"""The sentences of answers and of rules: findings in, text out. Nothing is decided or measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from study.analysis.questions.answers import MIN_CELLS, covers_pairs
from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import (
    Estimate,
    adjust_holm,
    replicate_interval,
    replicates_needed,
)
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.wording import format_estimate, format_states, join_words
from study.config.schema import SCORE_MARGIN

MAX_NAMED = 3  # cells that a sentence names; it counts the others
OPEN = "It cannot be said yet."


# --------------------------------------------------------------------------------- question 1: is it useful?


def open_useful(
    verdict: Verdict, reference: object, opponents: Sequence[PairedDifference], refuting: Sequence[PairedDifference]
) -> str:
    """The first sentence of question 1."""
    return {
        "supported": f"Yes, in this study: {reference} is better than {_join_others(opponents)}.",
        "not supported": f"No, in this study: {reference} gains less than {SCORE_MARGIN:g} over "
        f"{_join_others(refuting)}.",
        "not enough evidence": OPEN,
    }[verdict]


def format_differences(items: Sequence[PairedDifference], confidence: float) -> str:
    """Differences with their intervals; of more than four, which the table holds, the smallest and the largest."""
    ranked = sorted(items, key=lambda item: item.estimate.value or 0.0)
    numbers = [f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}" for item in ranked]
    if len(numbers) > 4:
        return f"from {numbers[0]} (the smallest) to {numbers[-1]} (the largest)"
    return "; ".join(numbers)


def format_distinguished(subject: str, items: Sequence[PairedDifference], confidence: float) -> str:
    """Which differences of the subject ("Its training loss") are distinguished by p values adjusted over `items`."""
    p_values = adjust_holm([item.p_value for item in items])
    apart = {id(item) for item, p in zip(items, p_values, strict=True) if p is not None and p < 1 - confidence}
    lower = [item for item in items if id(item) in apart and (item.estimate.value or 0) < 0]
    higher = [item for item in items if id(item) in apart and item not in lower]
    open_ = [item for item in items if id(item) not in apart]
    groups = {
        "lower than that of": lower, "higher than that of": higher, "not distinguished from that of": open_,
    }  # fmt: skip
    said = [f"{words} {join_words(item.other for item in group)}" for words, group in groups.items() if group]
    return f"{subject} is {join_words(said)}."


def format_sparse(items: Sequence[PairedDifference], confidence: float) -> list[str]:
    """What the sparse norm gains."""
    measured = [item for item in items if item.estimate.value is not None]
    if not measured:
        return []
    gains = format_differences(measured, confidence)
    return [f"The same for {measured[0].reference}, which does not decide: {gains}."]


def format_censored(items: Sequence[PairedDifference]) -> list[str]:
    """How many runs never reached the target of the time to target."""
    late = [f"{item.censored} in {item.reference} - {item.other}" for item in items if item.censored]
    if not late:
        return []
    return [f"Runs that never reached the target, counted as one epoch more than they had: {join_words(late)}."]


def format_distinctness(reference: str | None, estimate: Estimate, confidence: float) -> str:
    """Whether layers differ by more than seeds move a layer."""
    if estimate.value is None:
        return f"Replicates that differ are needed to say whether layers of {reference} differ more than seeds."
    number = format_estimate(estimate, confidence, digits=2)
    compared = "they differ" if estimate.above(0) else "not distinguished from seeds"
    return f"Distance between layers of {reference}, relative to replicates of one layer: {number}; {compared}."


def format_missing_runs(trials: pd.DataFrame) -> str:
    """How many runs of each norm have no result to compare."""
    missing = trials[trials["state"].ne("done")]
    if missing.empty:
        return "Every planned run has a result to compare."
    parts = [f"{norm} {format_states(group['state'])}" for norm, group in missing.groupby("norm", sort=False)]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def format_useful_rule(label: str, controls: Sequence[str], confidence: float) -> str:
    """The rule of question 1; `label` names the metric."""
    return (
        f"The switch norm is compared with every norm without a choice. Supported: against every single normalizer (at "
        f"least one) and every control ({', '.join(controls)}) of the study, the {confidence * 100:g} % interval of "
        f"the difference in {label} (switch norm minus the other, last epoch, paired at equal cell and replicate, "
        f"averaged over cells) lies above 0 (every comparison must pass, so no correction for multiple comparisons is "
        f"needed). Not supported: against any of them it lies below {SCORE_MARGIN:g}, so no practical gain is left (a "
        f"single comparison suffices, so the one-sided p values of a gain of {SCORE_MARGIN:g} or more are adjusted by "
        f"Holm over all comparisons, to the level {(1 - confidence) / 2:g}; if there is only one comparison, its "
        f"interval must lie below {SCORE_MARGIN:g}). Otherwise: not enough evidence. A comparison needs "
        f"{MIN_CELLS * 100:g} % of its planned cells. If one run of a pair diverges, the pair is dropped, "
        f"and no verdict is given that this loss could have caused. Training loss, generalization gap and "
        f"time to target (distinguished where the two-sided p value, adjusted by Holm over all with the same "
        f"reference, is below {1 - confidence:.3g}), norms whose layers also pick their own (ssn, sn-tied, other "
        f"pools), what ssn gains, and how distinct layers are (more than seeds: the interval lies above 1; no more: "
        f"below 0) are shown and do not decide."
    )


def format_pair_needs(item: PairedDifference, confidence: float, n_opponents: int) -> str:
    """What would decide an undecided difference."""
    estimate, missing = item.estimate, format_states(Counter(item.missing).elements())
    if estimate.value is None or not covers_pairs(item):
        complete = f"{item.n_cells} of {item.n_cells_planned} cells complete"
        return f"results of {_format_missing_pairs(item)} ({complete}; missing pairs: {missing})"
    if estimate.low is None or estimate.high is None:
        if estimate.n > 1:
            return "replicates that differ"
        return "at least 1 more replicate of every cell (2 allow an interval), better 4 more"
    if estimate.above(0) or (estimate.below(SCORE_MARGIN) and item.missing.get(f"{item.other} diverged")):
        return f"runs that do not diverge (missing pairs: {missing})"
    return _format_more_replicates(_count_replicates_needed(item, confidence, n_opponents), estimate.n)


def _count_replicates_needed(item: PairedDifference, confidence: float, n_opponents: int) -> int | None:
    """Replicates that would put the interval above 0, or below `SCORE_MARGIN` at the first level of Holm."""
    value, n = item.estimate.value or 0.0, item.estimate.n
    needed = []
    for target, level in ((value, confidence), (SCORE_MARGIN - value, 1 - (1 - confidence) / n_opponents)):
        interval = replicate_interval(item.per_replicate, level)
        half_width = ((interval.high or 0.0) - (interval.low or 0.0)) / 2
        needed.append(replicates_needed(half_width, target, n, level))
    return min((number for number in needed if number is not None), default=None)


def _format_missing_pairs(item: PairedDifference) -> str:
    """`3 more replicates at B = 2`, for the first cells that are not complete."""
    missing = [
        f"{number} more replicate{'s' * (number != 1)}" + f" at {cell}" * bool(cell)
        for cell, number in item.cells_missing.items()
    ]
    more = len(missing) - MAX_NAMED
    return join_words([*missing[:MAX_NAMED], *[f"those of {more} more cells"] * (more > 0)] or ["both norms in a cell"])


def _join_others(items: Sequence[PairedDifference]) -> str:
    return join_words([item.other for item in items] or ["none"])


# -------------------------------------------------------------------------------- question 1: warm starts


def format_start_answer(reference_norm: str | None, judged: Mapping[str, bool | None]) -> list[str]:
    """Whether the properties that start rules remove matter. judged: True, False or None (undecided), by property."""
    words = {True: "it matters {}", False: "it does not matter {}", None: "whether it matters {} cannot be said yet"}
    said = [words[matters].format(what) for what, matters in judged.items()]
    if not said:
        return []
    return [
        f"Does it matter that each layer has its own choice, or that layers mix normalizers? With the choices of "
        f"finished networks of {reference_norm}, {join_words(said)}."
    ]


def format_starts_rule(not_own: Sequence[str], no_mix: Sequence[str]) -> str:
    """The rule of comparisons between start rules."""
    return (
        f"Warm starts, which do not decide the verdict: the difference is frozen (every layer keeps its own choice) "
        f"minus the other rule, or, if the study has no frozen, fine_tune (whose choices are trained further) minus "
        f"the other rule. That each layer has its own choice matters if the difference lies above 0 for each of "
        f"{', '.join(not_own)} that the study has, and does not if it lies below {SCORE_MARGIN:g} for any of them "
        f"(Holm, as above). Whether it matters that layers mix normalizers is decided in the same way by "
        f"{', '.join(no_mix)}. The rule transplant, and all rules with start.fresh, train a newly initialized network: "
        f"they are compared with frozen and start.fresh, or else with scratch, which decides nothing: the BN "
        f"statistics of scratch may be moving averages, whereas those of warm starts are re-estimated."
    )


# ------------------------------------------------------------------------------------------------- replicates


def _format_more_replicates(needed: int | None, n: int) -> str:
    """How many replicates to add to the `n` existing ones. needed: their total number, None if it is above 1000."""
    if needed is None:
        return "more than 1000 replicates"
    more = max(needed - n, 1)
    return f"about {more} more replicate{'s' * (more > 1)} of every cell ({n + more} in all), at the spread seen so far"
