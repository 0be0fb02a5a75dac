"""The sentences of question 2 on its claim, and its rule. Findings in, text out; nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence

from study.analysis.questions.factor_sentences import UNIT, format_effect_rule
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.wording import join_words


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
