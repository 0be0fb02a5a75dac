"""How a question about factors is answered: which factors change what layers choose, and by how much?

A question states which columns of the trial table are its factors, which numbers decide, and by which rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from study.analysis.questions import sentences
from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.factor_effects import (
    ChoiceDistances,
    effect_rows,
    measure_distances,
    select_choices,
    share_rows,
)
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a question shows besides the effects of factors: rows of its table, and sentences."""

    effects: list[Effect]
    sentences: list[str]


class FactorQuestion(ABC):
    """A question that is answered by the effects of factors; see `answer_factor_question`."""

    title: str

    def select(self, records: StudyRecords) -> pd.DataFrame:
        """The planned trials that are compared."""
        return select_choices(records)

    @abstractmethod
    def find_factors(self, records: StudyRecords, trials: pd.DataFrame) -> list[str]:
        """The columns of `trials` whose effects are measured."""

    @abstractmethod
    def find_deciding(self, distances: ChoiceDistances, confidence: float) -> dict[str, Estimate]:
        """The numbers that decide, by name."""

    @abstractmethod
    def decide(self, deciding: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
        """The verdict; `covered`: enough of the planned cells have a result."""

    def is_settled(self, estimate: Estimate) -> bool:
        """Whether a deciding number needs no more replicates, whatever the others are."""
        return False

    @abstractmethod
    def find_deciding_rows(
        self, distances: ChoiceDistances, deciding: Mapping[str, Estimate], confidence: float
    ) -> list[Effect]:
        """Rows of the table for deciding numbers that are not themselves effects of factors."""

    @abstractmethod
    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        """What else is shown."""

    @abstractmethod
    def open_answer(self, verdict: Verdict, deciding: Mapping[str, Estimate], confidence: float) -> str:
        """The first sentence of the answer."""

    @abstractmethod
    def format_rule(self, confidence: float) -> str:
        """The rule of `decide`, in words."""

    @abstractmethod
    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        """Factors that would have to vary for a verdict, as needs."""

    @abstractmethod
    def name_co_varying(self, records: StudyRecords) -> list[str]:
        """What else changes with a factor of the question, as sentences."""


def answer_factor_question(question: FactorQuestion, records: StudyRecords) -> Answer:
    """Answers a question about factors from a study of any completeness."""
    confidence, trials = records.study.analysis.confidence, question.select(records)
    distances = measure_distances(records.profiles, trials, question.find_factors(records, trials), records.space)
    deciding = question.find_deciding(distances, confidence)
    verdict = question.decide(deciding, confidence, covered=distances.covered)
    details = question.find_details(records, trials, distances)
    shares = share_rows(distances, confidence)
    effects = [
        *effect_rows(distances, confidence), *question.find_deciding_rows(distances, deciding, confidence), *shares,
        *details.effects,
    ]  # fmt: skip
    text = sentences.format_missing_choices(records, distances) or [
        question.open_answer(verdict, deciding, confidence),
        *sentences.format_factor_effects(distances, confidence),
        *sentences.format_variance_shares(shares),
        *details.sentences,
        *question.name_co_varying(records),
        *sentences.format_left_out(records, trials),
    ]
    return Answer(
        title=question.title, verdict=verdict, answer=" ".join(text), rule=question.format_rule(confidence),
        effects=effects, n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_list_needs(question, records, verdict, distances, deciding),
    )  # fmt: skip


def _list_needs(
    question: FactorQuestion, records: StudyRecords, verdict: Verdict, distances: ChoiceDistances,
    deciding: Mapping[str, Estimate],
) -> list[str]:  # fmt: skip
    """What would decide an undecided question."""
    if verdict != "not enough evidence":
        return []
    if records.reference_norm is None:
        return ["runs of a switch norm (sn)"]
    return [
        *question.name_missing_variation(distances),
        *sentences.format_common_needs(distances),
        *(
            f"{name.replace(' / ', ' against ')}: {need}"
            for name, estimate in deciding.items()
            if not question.is_settled(estimate)
            for need in sentences.format_replicates_for_ratio(
                distances, name.split(" / "), estimate, records.study.analysis.confidence
            )
        ),
    ]
