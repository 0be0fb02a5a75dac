"""The sentences of question 1 and of its rules: findings in, text out. Nothing is decided or measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from study.analysis.questions.verdicts import AGAINST, OPEN, SUPPORTED, Claim, Verdict, find_below, judge
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate, adjust_holm
from study.analysis.statistics.paired_differences import SURE_TO_DIVERGE, CellDifference, PairedDifference
from study.analysis.statistics.sample_size import compute_next_confidence
from study.analysis.wording import (
    format_confidence,
    format_estimate,
    format_replicates_to_settle,
    format_states,
    join_words,
)
from study.config.wording import format_plural

MAX_NAMED = 3  # cells that a sentence names; it counts the others


# --------------------------------------------------------------------------------- question 1: is it useful?


def open_useful(
    verdict: Verdict,
    opponents: Sequence[PairedDifference],
    claims: Mapping[str, Claim],
    refuted: Sequence[str],
    confidence: float,
) -> str:
    """The first sentence of question 1.

    opponents: the comparisons that decide, at least one. claims: their numbers, by the other norm. refuted: the norms
    against which there is no practical gain.
    """
    reference = str(opponents[0].reference)
    if verdict == SUPPORTED:
        answer = f"{reference} is better than {join_words(claims)}"
    elif verdict == AGAINST:
        answer = _describe_refuted(opponents, claims, refuted, confidence)
    else:
        answer = _describe_open(reference, claims, confidence)
    answer += _describe_empty_cells(opponents, decided=verdict != OPEN)
    opposite = [words for item in opponents if (words := _describe_opposite_cells(item))]
    if opposite:
        average = {SUPPORTED: "the answer is yes: ", AGAINST: "the answer is no: ", OPEN: ""}[verdict]
        return f"{'; '.join(opposite)}; on average over all cells, {average}{answer}."
    start = {SUPPORTED: "Yes, in this study: ", AGAINST: "No, in this study: ", OPEN: ""}[verdict]
    text = f"{start}{answer}."
    return f"It{text[2:]}" if text.startswith("it ") else text


def format_differences(items: Sequence[PairedDifference], confidence: float) -> str:
    """Differences with their intervals; of more than four, which the table holds, the smallest and the largest."""
    ranked = sorted(items, key=lambda item: item.estimate.value or 0.0)
    numbers = [
        f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}{item.scope}" for item in ranked
    ]
    if len(numbers) > 4:
        return f"from {numbers[0]} (the smallest) to {numbers[-1]} (the largest)"
    return "; ".join(numbers)


def format_interactions(items: Sequence[PairedDifference], confidence: float) -> list[str]:
    """Which differences depend on the cell; p values are adjusted over `items`."""
    tested = [(item, item.interaction) for item in items if item.interaction is not None]
    p_values = adjust_holm([found.p_value for _, found in tested])
    return [
        f"The difference between {item.reference} and {item.other} is not the same in all cells (adjusted p = "
        f"{p:.2g}): {_at([item.cells[found.cell]])} it differs from the mean of the other cells by "
        f"{found.estimate.value or 0.0:+.3f}."
        for (item, found), p in zip(tested, p_values, strict=True) if p is not None and p < 1 - confidence
    ]  # fmt: skip


def format_few_pairs(items: Sequence[PairedDifference]) -> list[str]:
    """The cells with the fewest pairs, on which the degrees of freedom of an interval depend."""
    said = []
    for item in items:
        few = [cell for cell in item.cells if cell.n_pairs < cell.n_pairs_planned]
        if few:
            least = min(cell.n_pairs for cell in few)
            thin = [cell for cell in few if cell.n_pairs == least]
            said.append(f"{item.reference} - {item.other} {least} of {thin[0].n_pairs_planned} {_at(thin)}")
    return [f"Fewest pairs of runs in a cell: {'; '.join(said)}."] if said else []


def format_divergence(items: Sequence[PairedDifference]) -> list[str]:
    """How many runs diverged, which verdict that bars, and where a norm counts with chance level."""
    found = []
    for item in items:
        of_reference, of_other = item.reference_diverged, item.other_diverged
        if not of_reference and not of_other:
            continue
        counts = f"{of_reference or 'none'} of {item.reference} and {of_other or 'none'} of {item.other}"
        barred = [
            *["better"] * item.reference_diverged_more, *["worse, nor without gain"] * item.other_diverged_more
        ]  # fmt: skip
        not_called = f", so {item.reference} is not called {', nor '.join(barred)}" if barred else ""
        found.append(f"Diverged runs: {counts}{not_called}.")
    at_chance = dict.fromkeys(
        (str(level), tuple(cells)) for item in items for level, cells in item.at_chance.items() if cells
    )
    return found + [
        f"Every run of {level} diverged {_at_names(cells)}, so it counts there with the score of guessing."
        for level, cells in at_chance
    ]


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


def format_tuned(items: Sequence[PairedDifference], records: StudyRecords) -> list[str]:
    """The comparison in which each norm has the level of the tuned factors that suits it best."""
    measured = [item for item in items if item.estimate.value is not None]
    if not items:
        return []
    tuned = join_words(records.study.analysis.tuned)
    if not measured:
        return [f"With each norm at its own best {tuned}, no runs can be compared yet."]
    numbers = format_differences(measured, records.confidence)
    return [
        f"With each norm at its own best {tuned}, chosen in every cell on the validation images of the other "
        f"replicates, and compared on test images, which does not decide: {numbers}."
    ]


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
    compared = (
        "so layers choose differently" if estimate.above(0) else "so it cannot be said that layers choose differently"
    )
    return (
        f"Layers of {reference} lie apart by this many times the distance between two seeds of one layer: {number}, "
        f"{compared}."
    )


def format_missing_runs(trials: pd.DataFrame) -> str:
    """How many runs of each norm have no result to compare."""
    missing = trials[trials["state"].ne("done")]
    if missing.empty:
        return "Every planned run has a result to compare."
    parts = [f"{norm} {format_states(group['state'])}" for norm, group in missing.groupby("norm", sort=False)]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def format_useful_rule(label: str, controls: Sequence[str], margin: float, confidence: float) -> str:
    """The rule of question 1; `label` names the metric."""
    interval = f"{format_confidence(confidence)} interval"
    return " ".join([
        "The switch norm is compared with every norm whose layers do not choose: single normalizers and the controls",
        f"{', '.join(controls)}. The number that decides is the difference in {label}, switch norm minus the other, in",
        "the last epoch. It is paired at equal cell and replicate, and is the mean over all planned cells of each",
        f"cell's mean over replicates. A difference of up to {margin:g} has no practical meaning: this is the margin.",
        f"Supported: the {interval} lies above the margin against every one of these norms, and at least one",
        "of them is a single normalizer. All comparisons must pass, so no correction for their number is needed.",
        "Evidence against (not supported): the interval lies below the margin against any of them. One is enough, so",
        f"the one-sided p values are adjusted by Holm over all comparisons, to the level {(1 - confidence) / 2:.3g}.",
        "Then the switch norm is worse, or there is no practical difference, or no practical gain. Otherwise: not",
        "enough evidence.",
        "A run that diverges has no score, and its pair is left out. The switch norm is not called better than a norm",
        "if it diverged more often in any cell, and not called without gain if the other norm did. Where every run",
        "of a norm diverged in a cell, the norm counts there with the score of guessing; if these are fewer than",
        f"{SURE_TO_DIVERGE} runs, the other cells alone must give the same verdict. A cell with one pair bars a",
        "verdict, because its spread is unknown. So does a cell without any pair, unless the verdict is the same for",
        "all scores from 0 to 1 that it could have had. An interval has the degrees of freedom of the cell with the",
        "fewest pairs.",
        f"Intervals of single cells together have a confidence of {format_confidence(confidence)} for each comparison.",
        "The answer names cells where the switch norm is better and cells where it is worse, if their intervals lie on",
        "both sides of 0. These numbers are shown and do not decide: training loss, generalization gap and time to",
        f"target (distinguished if the two-sided p value, adjusted by Holm, is below {1 - confidence:.3g}), norms",
        "whose layers also choose (ssn, sn-tied, other pools), the gain of ssn, and how far layers lie apart.",
        "The number of replicates that would settle a comparison keeps the results so far. It assumes that the next",
        f"look at the data has a confidence of {format_confidence(compute_next_confidence(confidence))}.",
    ])  # fmt: skip


def format_pair_needs(item: PairedDifference, claim: Claim, confidence: float, n_opponents: int) -> str:
    """What would decide an undecided difference."""
    estimate = item.estimate
    if estimate.value is None or item.empty_cells:
        missing = format_states(Counter(item.missing).elements())
        return f"results of {_format_missing_pairs(item)} (missing pairs: {missing})"
    if estimate.low is None or estimate.high is None:
        single = [cell for cell in item.cells if cell.n_pairs == 1]
        if single and estimate.n > 1:
            return f"a second pair of runs {_at(single)}"
        if estimate.n > 1:
            return "replicates that differ"
        return "at least 1 more replicate of every cell (2 allow an interval), better 4 more"
    diverged = f"({item.reference_diverged} of {item.reference} and {item.other_diverged} of {item.other} diverged)"
    if item.without_chance is not None and estimate.excludes(claim.margin):
        cells = dict.fromkeys(name for names in item.at_chance.values() for name in names)
        return f"more runs {_at_names(list(cells))}, where every run diverged, to know whether they always do"
    if estimate.above(claim.margin) and not claim.can_support:
        return f"runs of {item.reference} that do not diverge {diverged}"
    if estimate.below(claim.margin) and not claim.can_refute:
        return f"runs of {item.other} that do not diverge {diverged}"
    return format_replicates_to_settle(estimate, claim.margin, confidence, n_refuting=n_opponents)


def _describe_refuted(
    opponents: Sequence[PairedDifference], claims: Mapping[str, Claim], refuted: Sequence[str], confidence: float
) -> str:
    """`sn is worse than bn and there is no practical difference between sn and gn (less than 0.005 either way)`.

    Worse: the number lies below 0, with p values adjusted for the number of comparisons. What is said of a comparison
    with empty cells holds for every score that they could have had.
    """
    reference = str(opponents[0].reference)
    lowest = {str(item.other): item.worst or item.estimate for item in opponents}
    below_0 = find_below({name: replace(claim, margin=0.0) for name, claim in claims.items()}, confidence)
    same = [name for name in refuted if lowest[name].above(-claims[name].margin)]
    worse = [name for name in refuted if name in below_0 and name not in same]
    no_gain = [name for name in refuted if name not in [*worse, *same]]
    margin = next((claim.margin for claim in claims.values()), 0.0)
    groups = (
        (worse, f"{reference} is worse than {{}}"),
        (same, f"there is no practical difference between {reference} and {{}} (less than {margin:g} either way)"),
        (no_gain, f"{reference} has no practical gain over {{}} (less than {margin:g})"),
    )
    return join_words(words.format(join_words(names)) for names, words in groups if names)


def _describe_open(reference: str, claims: Mapping[str, Claim], confidence: float) -> str:
    better = [name for name, claim in claims.items() if judge(claim, confidence) == SUPPORTED]
    unknown = [name for name in claims if name not in better]
    if not unknown:
        return f"{reference} is better than {join_words(better)}, but the study compares it with no single normalizer"
    if better:
        return (
            f"{reference} is better than {join_words(better)}, but it cannot be said yet whether it is better than "
            f"{join_words(unknown)}"
        )
    return f"it cannot be said yet whether {reference} is better than {join_words(unknown)}"


def _describe_empty_cells(items: Sequence[PairedDifference], *, decided: bool) -> str:
    """`: no replicate has a result of both sn and bn at B = 2`; empty where every cell has a pair."""
    said = [
        f"no replicate has a result of both {item.reference} and {item.other} "
        + (_at_names(item.empty_cells) if item.n_cells else "in any cell")
        for item in items if item.empty_cells
    ]  # fmt: skip
    if not said:
        return ""
    return f", although {join_words(said)} (no score there could change this)" if decided else f": {join_words(said)}"


def _describe_opposite_cells(item: PairedDifference) -> str:
    """`sn is better than bn at B = 2 and worse at B = 16`; empty where no cells lie on both sides of 0."""
    better = [cell for cell in item.cells if cell.estimate.above(0)]
    worse = [cell for cell in item.cells if cell.estimate.below(0)]
    if not better or not worse:
        return ""
    return f"{item.reference} is better than {item.other} {_at(better)} and worse {_at(worse)}"


def _at(cells: Sequence[CellDifference]) -> str:
    return _at_names([cell.name for cell in cells])


def _at_names(names: Sequence[str]) -> str:
    """`at B = 2 and B = 4`, for the first cells; `in the only cell` for a cell without a name."""
    if list(names) == [""]:
        return "in the only cell"
    said = [f"({name})" if "," in name and len(names) > 1 else name for name in names[:MAX_NAMED]]
    more = len(names) - MAX_NAMED
    return f"at {join_words([*said, *[format_plural(more, 'more cell')] * (more > 0)])}"


def _format_missing_pairs(item: PairedDifference) -> str:
    """`3 more replicates at B = 2`, for the first cells that have no pair."""
    missing = [
        format_plural(item.cells_missing[cell], "more replicate") + f" at {cell}" * bool(cell)
        for cell in item.empty_cells
    ]
    more = len(missing) - MAX_NAMED
    return join_words(
        [*missing[:MAX_NAMED], *[f"those of {format_plural(more, 'more cell')}"] * (more > 0)]
        or ["both norms in a cell"]
    )
