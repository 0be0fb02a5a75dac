"""How a question about factors is answered: which factors change what layers choose, and by how much?

A question states which columns of the trial table are its factors, and which claim is tested.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from study.analysis.questions import factor_sentences as sentences
from study.analysis.questions.answers import Answer, Effect, Judgement
from study.analysis.questions.cell_effects import cell_rows, format_cell_effects
from study.analysis.questions.choices import collect_choices, select_choices
from study.analysis.questions.factor_effects import ChoiceDistances, judge_factors, measure_distances
from study.analysis.questions.factor_rows import displacement_rows, effect_rows, share_rows, strongest_rows
from study.analysis.questions.layer_effects import format_layer_effects, layer_rows
from study.analysis.questions.seed_sources import format_seed_sources, seed_distance_rows
from study.analysis.questions.verdicts import OPEN, Claim, Verdict
from study.analysis.records import StudyRecords


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a question shows besides the effects of factors: rows of its table, and sentences."""

    effects: list[Effect] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, *parts: Details) -> Details:
        """The rows and sentences of all parts, in order."""
        return cls(
            effects=[effect for part in parts for effect in part.effects],
            sentences=[sentence for part in parts for sentence in part.sentences],
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The claim that is tested, in words, its verdict, and the numbers that decide.

    opening: the first sentence of the answer. numbers: by name. effects: rows for numbers that are not displacements.
    """

    claim: str
    verdict: Verdict
    opening: str
    numbers: Mapping[str, Claim]
    effects: Sequence[Effect] = ()


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
    def judge(self, distances: ChoiceDistances, confidence: float) -> Verdict:
        """The verdict on the claim, by any analysis."""

    @abstractmethod
    def decide(self, records: StudyRecords, distances: ChoiceDistances) -> Decision:
        """The claim and its verdict, which is that of `judge`."""

    @abstractmethod
    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        """What else is shown."""

    @abstractmethod
    def format_rule(self, records: StudyRecords) -> str:
        """The rule of `decide`, in words."""

    @abstractmethod
    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        """Factors that would have to vary for a verdict, as needs."""


def answer_factor_question(question: FactorQuestion, records: StudyRecords) -> Answer:
    """Answers a question about factors from a study of any completeness."""
    confidence, (trials, distances) = records.confidence, _measure(question, records)
    choices, claims = distances.choices, distances.claims(confidence)
    decision, verdicts = question.decide(records, distances), judge_factors(claims, confidence)
    details = question.find_details(records, trials, distances)
    strongest, shares = strongest_rows(distances), share_rows(choices, confidence)
    layers, seeds = layer_rows(choices, confidence), seed_distance_rows(records, trials)
    of_cells = cell_rows(distances, confidence)
    text = sentences.format_missing_choices(records, choices) or [
        decision.opening,
        *sentences.format_empty_cells(choices),
        *format_cell_effects(distances, of_cells, verdicts, confidence),
        *sentences.format_factor_verdicts(records, distances, verdicts),
        *sentences.format_strongest(strongest),
        *format_seed_sources(seeds),
        *details.sentences,
        *format_layer_effects(layers, list(claims), confidence),
        *sentences.format_variance_shares(shares),
        *sentences.format_left_out(records, trials, choices),
    ]
    return Answer(
        title=question.title, verdict=decision.verdict, claim=decision.claim, factors=verdicts, answer=" ".join(text),
        rule=question.format_rule(records),
        effects=[
            *effect_rows(distances, confidence), *seeds, *decision.effects, *of_cells, *strongest, *details.effects,
            *layers, *shares,
        ],
        n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_list_needs(question, records, distances, decision),
    )  # fmt: skip


def judge_factor_question(question: FactorQuestion, records: StudyRecords) -> Judgement:
    """The verdicts of `answer_factor_question` alone, with the numbers that decide."""
    confidence, (_, distances) = records.confidence, _measure(question, records)
    decision = question.decide(records, distances)
    return Judgement(
        verdict=decision.verdict, factors=judge_factors(distances.claims(confidence), confidence),
        effects=[*displacement_rows(distances, confidence), *decision.effects],
    )  # fmt: skip


def _measure(question: FactorQuestion, records: StudyRecords) -> tuple[pd.DataFrame, ChoiceDistances]:
    """The planned trials that are compared, and the displacements of the factors."""
    trials = question.select(records)
    factors = question.find_factors(records, trials)
    choices = collect_choices(records.profiles, trials, factors, records.space)
    return trials, measure_distances(choices, records.margin("effect"))


def _list_needs(
    question: FactorQuestion, records: StudyRecords, distances: ChoiceDistances, decision: Decision
) -> list[str]:
    """What would decide an undecided question, or, where the claim has its verdict, undecided factors."""
    if decision.verdict != OPEN:
        claims = distances.claims(records.confidence)
        verdicts = judge_factors(claims, records.confidence)
        open_claims = {name: claim for name, claim in claims.items() if verdicts[name] == OPEN}
        return sentences.format_more_replicates(open_claims, records)
    if records.reference_norm is None:
        return ["runs of a switch norm (sn)"]
    return [
        *question.name_missing_variation(distances),
        *sentences.format_common_needs(distances.choices),
        *sentences.format_more_replicates(decision.numbers, records),
    ]
