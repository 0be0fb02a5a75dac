"""Question 2: what impacts the choice?

Each factor gets a verdict: whether it moves what layers choose by more than the margin. Beside it stands the claim of
the paper (arXiv 1811.07727), where its factors vary: depth and batch size move the choice further than parameter
initialization, learning-rate decay and solver do.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd

from study.analysis.questions import claim_sentences as sentences
from study.analysis.questions.answers import Answer, Judgement
from study.analysis.questions.choices import ALL_LEVELS
from study.analysis.questions.factor_effects import ChoiceDistances, adjust_p_values
from study.analysis.questions.factor_question import (
    Decision,
    Details,
    FactorQuestion,
    answer_factor_question,
    judge_factor_question,
)
from study.analysis.questions.factor_robustness import explore_factor_question
from study.analysis.questions.factor_rows import factor_row
from study.analysis.questions.impact_details import find_dynamics, find_places, find_trends
from study.analysis.questions.robustness import Robustness
from study.analysis.questions.verdicts import Claim, Verdict, find_above, find_below, judge_all, judge_any
from study.analysis.records import StudyRecords
from study.analysis.statistics.displacement import correlate_displacements, displacement, displacement_difference
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.moments import Moments

STRONG = ("depth", "batch_size")  # the paper's claim
WEAK = ("initialization", "decay", "solver")


def answer_impacts(records: StudyRecords) -> Answer:
    """Says of each factor whether it moves the choices of the reference norm. Works on any part of a study."""
    return answer_factor_question(_Impacts(), records)


def judge_impacts(records: StudyRecords) -> Judgement:
    """The verdicts of `answer_impacts` alone."""
    return judge_factor_question(_Impacts(), records)


def explore_impacts(records: StudyRecords) -> Robustness:
    """What other analyses would have answered."""
    return explore_factor_question(_Impacts(), records)


def compare_factors(distances: ChoiceDistances, confidence: float) -> dict[str, Claim]:
    """The difference between the displacements of each strong and each weak factor that vary: `depth - solver`.

    A strong factor with levels between its ends may be further than the weak one by all of its levels, too.
    """
    moments, between = distances.moments, distances.between
    pairs = [(strong, weak) for strong, weak in product(STRONG, WEAK) if {strong, weak} <= moments.keys()]

    def compare(strong: Moments, weak: Moments) -> Estimate:
        first, second = displacement(strong, confidence), displacement(weak, confidence)
        return displacement_difference(first, second, confidence, correlate_displacements(strong, weak))

    return {
        f"{strong} - {weak}": Claim(
            estimate=compare(moments[strong], moments[weak]),
            margin=distances.margin,
            others=[compare(between[strong], moments[weak])] if strong in between else [],
            can_support=moments[strong].is_complete and moments[weak].is_complete,
            can_refute=moments[strong].is_complete and moments[weak].is_complete,
        )
        for strong, weak in pairs
    }


class _Impacts(FactorQuestion):
    title = "What impacts the choice?"

    def find_factors(self, records: StudyRecords, trials: pd.DataFrame) -> list[str]:
        return [name for name in records.study.factors if name != "norm"]

    def judge(self, distances: ChoiceDistances, confidence: float) -> Verdict:
        differences = compare_factors(distances, confidence)
        if differences:
            return judge_all(differences, confidence)
        return judge_any(distances.claims(confidence), confidence)

    def decide(self, records: StudyRecords, distances: ChoiceDistances) -> Decision:
        differences = compare_factors(distances, records.confidence)
        if not differences:
            return _decide_any(records, distances, self.judge(distances, records.confidence))
        strong, weak = ([name for name in names if any(name in pair.split(" - ") for pair in differences)]
                        for names in (STRONG, WEAK))  # fmt: skip
        verdict = self.judge(distances, records.confidence)
        claim = sentences.format_paper_claim(records, strong, weak, [*STRONG, *WEAK])
        p_values = adjust_p_values(differences, records.confidence)
        rows = [
            factor_row(distances.choices, "effect_difference", name, name.split(" - "), each.estimate, p_values[name])
            for name, each in differences.items()
        ] + [
            factor_row(distances.choices, "effect_difference_all_levels", name, [strong + ALL_LEVELS, weak], other)
            for name, each in differences.items() for strong, weak in [name.split(" - ")] for other in each.others
        ]  # fmt: skip
        lost = find_below(differences, records.confidence)
        return Decision(
            claim=claim, verdict=verdict, numbers=differences, effects=rows,
            opening=sentences.open_paper_claim(verdict, claim, lost, distances.margin),
        )  # fmt: skip

    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        return Details.join(find_places(records, trials), find_trends(records, trials), find_dynamics(records, trials))

    def format_rule(self, records: StudyRecords) -> str:
        return sentences.format_impacts_rule(STRONG, WEAK, records)

    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        return [] if distances.moments else ["cells that differ in one factor alone"]


def _decide_any(records: StudyRecords, distances: ChoiceDistances, verdict: Verdict) -> Decision:
    """Where the paper's claim cannot be tested: whether any of the study's factors moves the choice."""
    claims = distances.claims(records.confidence)
    claim = sentences.format_any_claim(records, list(claims))
    moving = find_above(claims, records.confidence)
    return Decision(
        claim=claim, verdict=verdict, numbers=_open_numbers(claims, records),
        opening=sentences.open_any_claim(verdict, list(claims), moving),
    )  # fmt: skip


def _open_numbers(claims: Mapping[str, Claim], records: StudyRecords) -> dict[str, Claim]:
    """The numbers that more replicates could still move to one side of their margin."""
    settled = {*find_above(claims, records.confidence), *find_below(claims, records.confidence)}
    return {name: claim for name, claim in claims.items() if name not in settled}
