"""The sentences on factors that questions 2 and 3 share. Findings in, text out; nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import Choices, find_empty_cells, name_cell
from study.analysis.questions.factor_effects import ChoiceDistances, WidestPair
from study.analysis.questions.verdicts import Claim, Verdict, lies_beyond
from study.analysis.records import StudyRecords
from study.analysis.statistics.contrasts import find_ends
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.profiles import LATER
from study.analysis.wording import (
    format_confidence,
    format_estimate,
    format_number,
    format_replicates_to_settle,
    format_states,
    join_words,
)
from study.config.wording import format_plural
from study.plan.analysis_plan import DISTANCE

MAX_NAMED = 3  # cells that a sentence names; it counts the others
UNIT = f"{DISTANCE} distance"


def format_missing_choices(records: StudyRecords, choices: Choices) -> list[str]:
    """Why there is nothing to say about choices; empty where there is."""
    if records.reference_norm is None:
        return ["The study holds no switch norm, so there is no choice to look at."]
    if not choices.present.any():
        return [f"No run of {records.reference_norm} has finished with switch weights."]
    return []


def format_empty_cells(choices: Choices) -> list[str]:
    """The planned cells without any result, which bar a verdict that they could change."""
    empty = find_empty_cells(choices)
    if not empty:
        return []
    names = [name_cell(choices.cells.iloc[number], choices.factors) for number in empty]
    more = len(names) - MAX_NAMED
    listed = join_words([*names[:MAX_NAMED], *[format_plural(more, "more cell")] * (more > 0)])
    return [f"No run has a result at {listed}, so nothing is concluded that these could change."]


def format_factor_verdicts(
    records: StudyRecords, distances: ChoiceDistances, verdicts: Mapping[str, Verdict]
) -> list[str]:
    """A sentence for each factor, and one on the unit."""
    if not distances.moments:
        return []
    confidence = records.confidence
    relative, claims = distances.relative(confidence), distances.claims(confidence)
    widest = distances.find_widest_pairs(confidence)
    found = [
        _format_factor(records, distances, name, verdicts[name], claim, relative[name], widest.get(name))
        for name, claim in claims.items() if claim.estimate.value is not None
    ]  # fmt: skip
    if any(moments.seeds_change_nothing for moments in distances.moments.values()):
        found.append("Seeds change nothing here: replicates of a cell chose exactly the same.")
    return [
        *found,
        f"A displacement is how far the levels of a factor lie apart, free of the noise of seeds; below "
        f"{distances.margin:g} ({UNIT}; {_describe_size(distances.margin)}) it counts as none. Where nothing moves the "
        f"choice, estimates scatter around 0, below it as often as above.",
        *_format_ends([*distances.between]),
    ]


def _format_ends(names: Sequence[str]) -> list[str]:
    """Says that displacements compare the ends of factors that have levels between them."""
    if not names:
        return []
    ends = join_words([f"of {name}" for name in names])
    return [f"Unless all levels are named, a displacement compares the lowest and the highest level {ends}."]


def _format_factor(
    records: StudyRecords, distances: ChoiceDistances, name: str, verdict: Verdict, claim: Claim, relative: Estimate,
    widest: WidestPair | None,
) -> str:  # fmt: skip
    ends = find_ends(distances.choices.cells[name].tolist())
    levels = f" (from {ends[0]} to {ends[1]})" if ends else ""
    by = format_estimate(claim.estimate, records.confidence)
    seeds = (
        f", which is {format_number(relative.value, 2)} times the distance between two seeds"
        if relative.value is not None
        else ""
    )
    subject = f"{name}{levels}"
    if widest:
        by = f"{by} on average over all pairs of its levels"
        between = format_estimate(widest.estimate, widest.confidence)
        seeds += f"; its levels {join_words(widest.levels)} are furthest apart, by {between}"
    elif claim.others:
        seeds += f"; over all pairs of its levels, by {format_estimate(claim.others[0], records.confidence)}"
    if verdict == "supported" and claim.others and not claim.estimate.above(claim.margin):
        though = "only some of its levels may differ" if widest else f"its ends may not differ{levels}"
        return f"Factor {name} moves the choice, though {though}: by {by}{seeds}."
    return {
        "supported": f"Factor {subject} moves the choice by {by}{seeds}.",
        "not supported": f"Factor {subject} does not move the choice by more than {distances.margin:g}: {by}{seeds}.",
        "not enough evidence": f"Whether {subject} moves the choice cannot be said yet: {by}{seeds}.",
    }[verdict]


def _describe_size(margin: float) -> str:
    """A Jensen-Shannon distance as points of weight that one member gains: 0.09 are ten near equal weights."""
    return (
        f"in every layer, about {margin * 112:.0f} points of weight at equal weights, {200 * margin**2:.1g} at one-hot"
    )


def format_strongest(rows: Sequence[Effect]) -> list[str]:
    """The probability of each factor that it is the strongest."""
    if not rows:
        return []
    each = join_words(f"{row.comparison} {format_number(row.estimate.value or 0.0, 2)}" for row in rows)
    return [f"Probability of being the factor that moves the choice furthest, from resampled replicates: {each}."]


def format_variance_shares(rows: Sequence[Effect]) -> list[str]:
    """The ranking by share of variance; `rows` are from `share_rows`."""
    shares = [row for row in rows if row.measure.name == "share_of_variance" and row.estimate.value is not None]
    said = "; ".join(f"{row.comparison} {_format_percent(row.estimate)}" for row in shares)
    return [f"Shares of the variance between what networks chose: {said}."] if shares else []


def format_left_out(records: StudyRecords, trials: pd.DataFrame, choices: Choices) -> list[str]:
    """Which runs and layers are not in the numbers. `trials` are from `select_choices`."""
    found = []
    of_norm, from_scratch = (
        int(each["norm"].eq(records.reference_norm or "").sum()) for each in (records.trials, records.from_scratch)
    )
    if started := of_norm - from_scratch:
        runs = format_plural(started, "run that starts from another is", "runs that start from others are")
        found.append(f"{runs} left out.")
    if left_out := from_scratch - len(trials):
        runs = format_plural(left_out, "run at B = 1 is", "runs at B = 1 are")
        found.append(f"{runs} left out: there bn is always removed from the pool.")
    if positions := choices.profiles.left_out:
        found.append(f"Layers that some of the networks do not have are left out: {_name_positions(positions)}.")
    missing = trials["state"][trials["state"].ne("done")]
    if not missing.empty:
        found.append(f"Runs of {records.reference_norm} without a result to compare: {format_states(missing)}.")
    return found


def _name_positions(positions: Sequence[str]) -> str:
    """`stage 1, shortcut and the later blocks of stages 1 and 2`."""
    later = dict.fromkeys(name.partition(",")[0] for name in positions if name.endswith(LATER))
    stages = [name.removeprefix("stage ") for name in later]
    blocks = [f"the later blocks of stage{'s' * (len(stages) > 1)} {join_words(stages)}"] if stages else []
    return join_words([*(name for name in positions if not name.endswith(LATER)), *blocks])


def format_common_needs(choices: Choices) -> list[str]:
    """The cells and replicates that any verdict on the choice needs, where they are missing."""
    needs = []
    if empty := find_empty_cells(choices):
        names = [name_cell(choices.cells.iloc[number], choices.factors) for number in empty[:MAX_NAMED]]
        more = len(empty) - MAX_NAMED
        needs.append(f"results at {join_words([*names, *[format_plural(more, 'more cell')] * (more > 0)])}")
    if (n := choices.n_replicates) < 3:
        needs.append(f"at least 3 replicates of every cell, better 5 (now {n}; {3 - n} more at every cell would do)")
    return needs


def format_more_replicates(numbers: Mapping[str, Claim], records: StudyRecords) -> list[str]:
    """How many replicates would probably put each open number on one side of its margin."""
    return [
        f"{name.replace(' - ', ' against ')}: "
        + format_replicates_to_settle(
            each, claim.margin, records.confidence, n_supporting=tests, n_refuting=len(numbers)
        )
        for name, claim in numbers.items()
        for each, tests in [max(claim.count_tests(), key=lambda number: number[0].value or 0.0)]
        if each.freedom is not None and not lies_beyond(claim, records.confidence, above=True)
        and (claim.can_refute or not each.below(claim.margin))
    ]  # fmt: skip


def _format_percent(share: Estimate) -> str:
    value, *ends = (
        None if end is None else format_number(100 * end, 0) for end in (share.value, share.low, share.high)
    )
    return f"{value} %" + (f" ({ends[0]} to {ends[1]} %)" if None not in ends else "")


def format_effect_rule(records: StudyRecords) -> str:
    """How a factor is judged."""
    return " ".join([
        f"A factor moves the choice if its displacement is larger than the margin, {records.margin('effect'):g}",
        f"({UNIT}). Layers are matched by stage and place in the block, those of the first block of a stage apart from",
        "those of later blocks. Numeric levels are compared between the lowest and the highest, others as the mean",
        "over all pairs. Supported: the",
        f"{format_confidence(records.confidence)} interval lies above the margin. Evidence against: it lies below the",
        "margin. Where there are numeric levels between the ends, the mean over all pairs counts as well: one of the",
        "two above the margin supports (adjusted for two by Bonferroni), and both must lie below it for evidence",
        "against. Where there are more than two levels that are not numbers, each pair of them counts as well: one",
        "above the margin supports (adjusted by Bonferroni), and all must lie below it for evidence against.",
        "Otherwise: not enough evidence. At least 3 replicates are needed. A cell without any result bars a verdict",
        "that it could change. Other distances, shares of variance and the probability of being the strongest are",
        "shown and do not decide.",
    ])  # fmt: skip
