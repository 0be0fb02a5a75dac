"""Question 2: what impacts the choice?

The paper (arXiv 1811.07727) says that depth and batch size move it more than parameter initialization, learning-rate
decay and solver do. A factor is measured by how far its levels move the profile of switch weights, relative to how far
another seed moves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd

from study.analysis.questions import sentences
from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.factor_effects import (
    RATIO_MARGIN,
    ChoiceDistances,
    adjust_ratio_p_values,
    factor_row,
    find_distinguished,
)
from study.analysis.questions.factor_question import Details, FactorQuestion, answer_factor_question
from study.analysis.questions.impact_details import find_dynamics, find_trends
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.profiles import FactorDistances, count_cell_pairs, effect_contrast

STRONG = ("depth", "batch_size")  # the paper's claim
WEAK = ("initialization", "decay", "solver")


def answer_impacts(records: StudyRecords) -> Answer:
    """Ranks factors by how far they move the choices of the reference norm. Works on any part of a study."""
    return answer_factor_question(_Impacts(), records)


def contrast_effects(factors: Mapping[str, FactorDistances], confidence: float) -> dict[str, Estimate]:
    """The ratio of the effects of each strong and each weak factor that vary: `depth / solver`."""
    pairs = [(strong, weak) for strong, weak in product(STRONG, WEAK) if {strong, weak} <= factors.keys()]
    return {f"{a} / {b}": effect_contrast(factors[a], factors[b], confidence) for a, b in pairs}


def decide(contrasts: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
    """The verdict on ratios of effects, strong over weak; `sentences.format_impacts_rule` says it in words."""
    if covered and find_lost_contrasts(contrasts, confidence):
        return "not supported"
    both = {name.split(" / ")[0] for name in contrasts} == set(STRONG)
    if covered and both and all(ratio.above(1) for ratio in contrasts.values()):
        return "supported"
    return "not enough evidence"


def find_lost_contrasts(contrasts: Mapping[str, Estimate], confidence: float) -> list[str]:
    """The pairs whose ratio lies below `RATIO_MARGIN`, adjusted for their number, as one of them refutes the claim."""
    return find_distinguished(contrasts, RATIO_MARGIN, confidence, above=False)


class _Impacts(FactorQuestion):
    title = "What impacts the choice?"

    def find_factors(self, records: StudyRecords, trials: pd.DataFrame) -> list[str]:
        return [name for name in records.study.factors if name != "norm"]

    def find_deciding(self, distances: ChoiceDistances, confidence: float) -> dict[str, Estimate]:
        return contrast_effects(distances.factors, confidence)

    def decide(self, deciding: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
        return decide(deciding, confidence, covered=covered)

    def is_settled(self, estimate: Estimate) -> bool:
        return estimate.above(1)

    def find_deciding_rows(
        self, distances: ChoiceDistances, deciding: Mapping[str, Estimate], confidence: float
    ) -> list[Effect]:
        p_values = adjust_ratio_p_values(deciding, 1, confidence)
        return [
            factor_row(distances, "effect_ratio", name, name.split(" / "), ratio, p_values[name])
            for name, ratio in deciding.items()
        ]

    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        trends, dynamics = find_trends(records, trials), find_dynamics(records, trials)
        return Details(
            effects=[*trends.effects, *dynamics.effects],
            sentences=[*trends.sentences, *dynamics.sentences, *sentences.format_gradient_batch(trials)],
        )

    def open_answer(self, verdict: Verdict, deciding: Mapping[str, Estimate], confidence: float) -> str:
        return sentences.open_impacts(verdict, list(deciding), find_lost_contrasts(deciding, confidence))

    def format_rule(self, confidence: float) -> str:
        return sentences.format_impacts_rule(STRONG, WEAK, confidence)

    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        planned = distances.planned_cells
        varied = {name for name in planned if count_cell_pairs(planned, str(name))}
        return sentences.format_missing_claim([name for name in STRONG if name not in varied], WEAK, varied)

    def name_co_varying(self, records: StudyRecords) -> list[str]:
        return sentences.format_co_varying(records.study, list(records.study.joint))
