"""What other analyses would say about the factors that move the choice: questions 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from study.analysis.questions.choices import collect_choices
from study.analysis.questions.factor_effects import ChoiceDistances, judge_factors, measure_distances
from study.analysis.questions.factor_question import FactorQuestion
from study.analysis.questions.robustness import LAST_FIFTH, Analysis, Robustness
from study.analysis.records import StudyRecords
from study.analysis.statistics.distances import DISTANCES
from study.analysis.statistics.profiles import Alignment, build_profiles
from study.analysis.weight_tables import average_last_fifth
from study.config.choice_space import ChoiceSpace
from study.plan.analysis_plan import ALIGNMENT, LAST_EPOCH

ALIGNMENTS: tuple[Alignment, ...] = (ALIGNMENT, "stage", "relative depth")


def explore_factor_question(question: FactorQuestion, records: StudyRecords) -> Robustness:
    """The verdicts by every distance, alignment of layers, statistic and moment; the planned analysis first."""
    trials = question.select(records)
    factors = question.find_factors(records, trials)
    margin, analyses = records.margin("effect"), []
    for moment, switch in _select_moments(records):
        for alignment in ALIGNMENTS:
            profiles = build_profiles(switch, records.space, alignment)
            choices = collect_choices(profiles, trials, factors, records.space)
            for distance in DISTANCES:
                measured = measure_distances(choices, margin, distance)
                for statistic, distances in _select_statistics(measured, records.space):
                    values = {
                        "distance": distance.name, "alignment": alignment, "statistic": statistic, "moment": moment,
                    }  # fmt: skip
                    analyses.append(_judge(question, distances, values, records.confidence))
    return Robustness(analyses=analyses)


def _judge(
    question: FactorQuestion, distances: ChoiceDistances, values: dict[str, str], confidence: float
) -> Analysis:  # fmt: skip
    claims = distances.claims(confidence)
    return Analysis(
        choices=values, verdict=question.judge(distances, confidence), factors=judge_factors(claims, confidence),
        estimates={name: claim.estimate for name, claim in claims.items()}, margin=distances.margin,
    )  # fmt: skip


def _select_moments(records: StudyRecords) -> Iterator[tuple[str, pd.DataFrame]]:
    """Switch weights of backbones in the last epoch, and their means over the last fifth of the epochs."""
    yield LAST_EPOCH, records.switch
    late = average_last_fifth(records.weights)
    keys = records.trials[["trial_id", "replicate", "key"]].astype({"replicate": "int64"}, errors="ignore")
    yield LAST_FIFTH, late.merge(keys, on=["trial_id", "replicate"])


def _select_statistics(distances: ChoiceDistances, space: ChoiceSpace) -> Iterator[tuple[str, ChoiceDistances]]:
    """All choices of a layer together, and each of them alone."""
    yield "both" if len(space.axes) == 2 else "all", distances
    if len(space.axes) > 1:
        for number, axis in enumerate(space.axes):
            yield axis.target, distances.select_axis(number)
