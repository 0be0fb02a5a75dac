"""The sentences of questions 2 and 3: what moves the choice. Findings in, text out; nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import Choices, find_empty_cells
from study.analysis.questions.factor_effects import ChoiceDistances
from study.analysis.questions.verdicts import Claim, Verdict
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
from study.plan.analysis_plan import DISTANCE

MAX_NAMED = 3  # cells that a sentence names; it counts the others
UNIT = f"{DISTANCE} distance"


# ------------------------------------------------------------------------------------------------- the claim


def format_paper_claim(
    records: StudyRecords, strong: Sequence[str], weak: Sequence[str], all_factors: Sequence[str]
) -> str:
    """The part of the paper's claim that a study can test, with what changes along with a factor, and what is left."""
    absent = [name for name in all_factors if name not in (*strong, *weak)]
    left = f" ({join_words(absent)} {'was' if len(absent) == 1 else 'were'} not varied)" if absent else ""
    moves = "moves" if len(strong) == 1 else "each move"
    return (
        f"{_join_factors(records, strong)} {moves} the choice further than {_join_factors(records, weak)}{left}"
    )  # fmt: skip


def format_any_claim(records: StudyRecords, factors: Sequence[str]) -> str:
    """The claim of a study that cannot test the paper's."""
    if not factors:
        return "some factor moves the choice"
    if len(factors) == 1:
        return f"{_join_factors(records, factors)} moves the choice"
    return f"at least one of {_join_factors(records, factors)} moves the choice"


def open_paper_claim(verdict: Verdict, claim: str, lost: Sequence[str], margin: float) -> str:
    """The first sentence where the paper's claim is tested; `lost` are named `depth - solver`."""
    if verdict == "supported":
        return f"Yes, in this study: {claim}."
    if verdict == "not supported":
        pairs = join_words(name.replace(" - ", " against ") for name in lost)
        return (
            f"No. Tested was that {claim}. In this study it does not hold for {pairs}: the first moves the choice by "
            f"less than {margin:g} ({UNIT}) more than the second, or moves it less."
        )
    return f"It cannot be said yet whether {claim}."


def open_any_claim(verdict: Verdict, factors: Sequence[str], moving: Sequence[str]) -> str:
    """The first sentence where the paper's claim cannot be tested."""
    if verdict == "supported":
        return f"In this study, {join_words(moving)} {'moves' if len(moving) == 1 else 'move'} the choice."
    if verdict == "not supported":
        return f"In this study, {join_words(factors)} {'does' if len(factors) == 1 else 'do'} not move the choice."
    if not factors:
        return "It cannot be said what moves the choice: no factor varies among the runs that can be compared."
    one = len(factors) == 1
    return f"It cannot be said yet whether {'' if one else 'any of '}{join_words(factors)} moves the choice."


def _join_factors(records: StudyRecords, factors: Sequence[str]) -> str:
    return join_words(name_with_co_varying(records, name) for name in factors)


def name_with_co_varying(records: StudyRecords, factor: str) -> str:
    """`batch_size (with gradient_batch, steps)`: the factor, and what the study changes along with it."""
    others = list(records.co_varying.get(factor, ()))
    return f"{factor} (with {join_words(others)})" if others else factor


# --------------------------------------------------------------------------------------------------- factors


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
    names = [_name_cell(choices.cells.iloc[number], choices.factors) for number in empty]
    more = len(names) - MAX_NAMED
    listed = join_words([*names[:MAX_NAMED], *[f"{more} more cells"] * (more > 0)])
    return [f"No run has a result at {listed}, so nothing is concluded that these could change."]


def format_factor_verdicts(
    records: StudyRecords, distances: ChoiceDistances, verdicts: Mapping[str, Verdict]
) -> list[str]:
    """A sentence for each factor, and one on the unit."""
    if not distances.moments:
        return []
    confidence = records.confidence
    relative, estimates = distances.relative(confidence), distances.estimate(confidence)
    found = [
        _format_factor(records, distances, name, verdicts[name], estimate, relative[name])
        for name, estimate in estimates.items()
    ]
    if any(moments.seeds_change_nothing for moments in distances.moments.values()):
        found.append("Seeds change nothing here: replicates of a cell chose exactly the same.")
    return [
        *found,
        f"A displacement is how far the levels of a factor lie apart, free of the noise of seeds; below "
        f"{distances.margin:g} ({UNIT}, about {_points(distances.margin)} points of weight in every layer) it counts "
        f"as none. Where nothing moves the choice, estimates scatter around 0, below it as often as above.",
    ]  # fmt: skip


def _format_factor(
    records: StudyRecords, distances: ChoiceDistances, name: str, verdict: Verdict, estimate: Estimate,
    relative: Estimate,
) -> str:  # fmt: skip
    ends = find_ends(distances.choices.cells[name].tolist())
    levels = f" (from {ends[0]} to {ends[1]})" if ends else ""
    by = format_estimate(estimate, records.confidence)
    seeds = (
        f", which is {format_number(relative.value, 2)} times the distance between two seeds"
        if relative.value is not None
        else ""
    )
    subject = f"{name}{levels}"
    return {
        "supported": f"Factor {subject} moves the choice by {by}{seeds}.",
        "not supported": f"Factor {subject} does not move the choice by more than {distances.margin:g}: {by}{seeds}.",
        "not enough evidence": f"Whether {subject} moves the choice cannot be said yet: {by}{seeds}.",
    }[verdict]


def _points(margin: float) -> str:
    """A Jensen-Shannon distance as points of weight: near uniform weights over three members, 0.09 are ten."""
    return f"{margin * 112:.0f}"


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
        found.append(f"{started} runs that start from others are left out.")
    if left_out := from_scratch - len(trials):
        found.append(f"{left_out} runs at B = 1 are left out: there bn is always removed from the pool.")
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
        names = [_name_cell(choices.cells.iloc[number], choices.factors) for number in empty[:MAX_NAMED]]
        more = len(empty) - MAX_NAMED
        needs.append(f"results at {join_words([*names, *[f'{more} more cells'] * (more > 0)])}")
    if (n := choices.n_replicates) < 3:
        needs.append(f"at least 3 replicates of every cell, better 5 (now {n}; {3 - n} more at every cell would do)")
    return needs


def format_more_replicates(numbers: Mapping[str, Claim], records: StudyRecords) -> list[str]:
    """How many replicates would probably put each open number on one side of its margin."""
    return [
        f"{name.replace(' - ', ' against ')}: "
        + format_replicates_to_settle(claim.estimate, claim.margin, records.confidence, n_refuting=len(numbers))
        for name, claim in numbers.items()
        if claim.estimate.freedom is not None and not claim.estimate.above(claim.margin)
    ]


def _name_cell(levels: pd.Series, factors: Sequence[str]) -> str:
    return join_words(f"{name} = {levels[name]}" for name in factors) if len(factors) else "the one cell"


def _format_percent(share: Estimate) -> str:
    value, *ends = (
        None if end is None else format_number(100 * end, 0) for end in (share.value, share.low, share.high)
    )
    return f"{value} %" + (f" ({ends[0]} to {ends[1]} %)" if None not in ends else "")


# ---------------------------------------------------------------------- question 2: what impacts the choice?


def format_impacts_rule(strong: Sequence[str], weak: Sequence[str], records: StudyRecords) -> str:
    """The rule of question 2."""
    return " ".join([
        format_effect_rule(records),
        "The paper's claim is tested where its factors vary: for every pair of one of",
        f"{' and '.join(strong)} and one of {', '.join(weak)}, the displacement of the first is larger by more than",
        f"{records.margin('effect'):g}. Supported: the interval of the difference lies above that for every pair (all",
        "must pass, so no correction is needed). Evidence against: it lies below for any pair (adjusted by Holm for",
        "their number). Otherwise: not enough evidence. Where the claim cannot be tested, the verdict is on whether",
        "any factor moves the choice (one above the margin is enough, adjusted by Holm for their number). The",
        "size of a displacement depends on the compared levels: levels that are further apart give larger ones.",
    ])  # fmt: skip


def format_effect_rule(records: StudyRecords) -> str:
    """How a factor is judged."""
    return " ".join([
        f"A factor moves the choice if its displacement is larger than the margin, {records.margin('effect'):g}",
        f"({UNIT}). Layers are matched by stage and place in the block, those of the first block of a stage apart from",
        "those of later blocks. Numeric levels are compared between the lowest and the highest, others as the mean",
        "over all pairs. Supported: the",
        f"{format_confidence(records.confidence)} interval lies above the margin. Evidence against: it lies below the",
        "margin, and so does the mean over all pairs of levels where there are levels between the ends. Otherwise:",
        "not enough evidence. At least 3 replicates are needed. A cell without any result bars a",
        "verdict that it could change. Other distances, shares of variance and the probability of being the strongest",
        "are shown and do not decide.",
    ])  # fmt: skip


# -------------------------------------------------------------------------- question 3: tasks and data sets


def open_tasks(verdict: Verdict, names: Sequence[str], moving: Sequence[str]) -> str:
    """The first sentence of question 3; `moving`: those of the names that move the choice."""
    return {
        "supported": f"Yes, in this study: backbones choose differently by {join_words(moving or ['none'])}.",
        "not supported": f"No, in this study: backbones choose alike whatever the {join_words(names or ['none'])}.",
        "not enough evidence": "It cannot be said yet whether tasks and data sets choose differently.",
    }[verdict]


def format_tasks_rule(together: str, records: StudyRecords) -> str:
    """The rule of question 3."""
    return (
        f"{format_effect_rule(records)} Tasks and data sets prefer different normalizers if task, or dataset, moves "
        f"what backbones choose; evidence against needs both, where both vary, to lie below the margin. Where tasks "
        f"have no data set in common, the two cannot be separated and count as one factor, {together}. Heads, compared "
        f"within their task, and transfer are shown and do not decide."
    )


def format_preferences(means: pd.DataFrame) -> str:
    """The mean weights of each setting: one row per setting, one column per normalizer."""
    each = [
        f"{setting} {', '.join(f'{name} {format_number(weight, 2)}' for name, weight in row.dropna().items())}"
        for setting, row in means.iterrows()
    ]
    return f"Mean weights of the backbone: {'; '.join(each)}."


def format_head_effects(rows: Sequence[Effect], confidence: float) -> list[str]:
    """The displacements of heads."""
    said = "; ".join(
        f"{row.comparison} {format_estimate(row.estimate, confidence)}"
        for row in rows if row.estimate.value is not None
    )  # fmt: skip
    return [f"How far heads are moved, within their task: {said}."] if said else []


def format_transfer(rows: Sequence[Effect], confidence: float) -> list[str]:
    """How far transfer moves the choice, and what it leaves of the effects of task and data set."""
    titles = {
        "transfer_distance": "How far fine-tuning moves what backbones chose",
        "effect_after": "Displacements between fine-tuned networks",
    }
    said = {
        measure: "; ".join(
            f"{row.comparison} {format_estimate(row.estimate, confidence)}"
            for row in rows if row.measure.name == measure and row.estimate.value is not None
        )
        for measure in titles
    }  # fmt: skip
    return [f"{titles[measure]}: {text}." for measure, text in said.items() if text]
