"""Question 3: do tasks and data sets prefer different normalizers?

The paper (arXiv 1811.07727) says that networks of different tasks and data sets learn to select differently. Task and
data set are factors as those of question 2: how far do they move what backbones choose, relative to another seed?
"""

from __future__ import annotations

import pandas as pd

from study.analysis.questions import task_sentences as sentences
from study.analysis.questions.answers import Answer, Effect, Judgement
from study.analysis.questions.choices import collect_choices, select_choices
from study.analysis.questions.factor_effects import ChoiceDistances, measure_distances
from study.analysis.questions.factor_question import (
    Decision,
    Details,
    FactorQuestion,
    answer_factor_question,
    judge_factor_question,
)
from study.analysis.questions.factor_robustness import explore_factor_question
from study.analysis.questions.factor_rows import factor_row
from study.analysis.questions.robustness import Robustness
from study.analysis.questions.transfer import compare_after, compare_before_and_after, select_fine_tuned
from study.analysis.questions.verdicts import Claim, Verdict, find_above, judge_any
from study.analysis.records import StudyRecords
from study.analysis.statistics.contrasts import find_contrasts
from study.analysis.statistics.profiles import build_profiles
from study.config.schema import StudyConfig
from study.plan.trials import find_factor_fields

APART = ("task", "dataset")
TOGETHER = "task on dataset"  # both as one factor, where tasks have no data set in common


def answer_tasks(records: StudyRecords) -> Answer:
    """Measures how far task and data set move the choices of backbones. Works on any part of a study."""
    return answer_factor_question(_Tasks(), records)


def judge_tasks(records: StudyRecords) -> Judgement:
    """The verdicts of `answer_tasks` alone."""
    return judge_factor_question(_Tasks(), records)


def explore_tasks(records: StudyRecords) -> Robustness:
    """What other analyses would have answered."""
    return explore_factor_question(_Tasks(), records)


def name_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a column `TOGETHER`: "detection on scenes"."""
    setting = trials["task"].astype(str) + " on " + trials["dataset"].astype(str)
    named: pd.DataFrame = trials.assign(**{TOGETHER: setting})
    return named


def task_factors(study: StudyConfig) -> list[str]:
    """The factors of a study with which task or data set change."""
    return [name for name in study.factors if {*APART} & {name, *find_factor_fields(study, name)}]


class _Tasks(FactorQuestion):
    title = "Do tasks and data sets prefer different normalizers?"

    def select(self, records: StudyRecords) -> pd.DataFrame:
        return name_settings(select_choices(records))

    def find_factors(self, records: StudyRecords, trials: pd.DataFrame) -> list[str]:
        return _find_factors(records, trials)

    def judge(self, distances: ChoiceDistances, confidence: float) -> Verdict:
        return judge_any(_select_claims(distances, confidence), confidence)

    def decide(self, records: StudyRecords, distances: ChoiceDistances) -> Decision:
        claims = _select_claims(distances, records.confidence)
        verdict, moving = self.judge(distances, records.confidence), find_above(claims, records.confidence)
        return Decision(
            claim="tasks and data sets prefer different normalizers", verdict=verdict, numbers=claims,
            opening=sentences.open_tasks(verdict, list(claims), moving),
        )  # fmt: skip

    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        confidence = records.confidence
        heads, transfer = _find_head_rows(records, trials), _find_transfer_rows(records)
        return Details(
            effects=[*heads, *transfer],
            sentences=[
                sentences.format_preferences(_mean_weights(records, trials)),
                *sentences.format_head_effects(heads, confidence),
                *sentences.format_transfer(transfer, confidence),
            ],
        )

    def format_rule(self, records: StudyRecords) -> str:
        return sentences.format_tasks_rule(TOGETHER, records)

    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        varied = {*APART, TOGETHER} & distances.moments.keys()
        return [] if varied else ["cells that differ in task, or in dataset, alone"]


def _select_claims(distances: ChoiceDistances, confidence: float) -> dict[str, Claim]:
    """That task moves the choice, and that the data set does."""
    claims = distances.claims(confidence)
    return {name: each for name, each in claims.items() if name in (*APART, TOGETHER)}


def _find_factors(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """Task and data set, or both as one factor, then what else the study varies."""
    others = [name for name in records.study.factors if name not in ("norm", *task_factors(records.study))]
    alone = find_contrasts(trials[[*APART, *others]].drop_duplicates(), "task")
    return [*APART, *others] if alone or trials["task"].nunique() < 2 else [TOGETHER, *others]


def _find_head_rows(records: StudyRecords, trials: pd.DataFrame) -> list[Effect]:
    """The effects of data set, batch size and so on what the layers of heads choose, by role, within each task."""
    rows = []
    for role, switch in records.heads.groupby("role", sort=True):
        for task, of_task in trials[trials["key"].isin(switch["key"])].groupby("task", sort=False):
            planned = trials[trials["task"].eq(task)]
            profiles = build_profiles(switch[switch["key"].isin(of_task["key"])], records.space)
            factors = [name for name in _find_factors(records, planned) if name not in ("task", TOGETHER)]
            choices = collect_choices(profiles, planned, factors, records.space)
            estimates = measure_distances(choices, records.margin("effect")).estimate(records.confidence)
            rows += [
                factor_row(choices, "effect_heads", f"{name}, {role} of {task}", [name], estimate)
                for name, estimate in estimates.items()
            ]
    return rows


def _find_transfer_rows(records: StudyRecords) -> list[Effect]:
    """What fine-tuning does to choices, in a study that fine-tunes."""
    tuned = name_settings(select_fine_tuned(records, name_settings(records.trials)[TOGETHER]))
    if tuned.empty:
        return []
    choices = collect_choices(records.profiles, tuned, _find_factors(records, tuned), records.space)
    after = measure_distances(choices, records.margin("effect"))
    return [
        *compare_before_and_after(records, tuned),
        *compare_after(after, [*APART, TOGETHER], records.confidence),
    ]


def _mean_weights(records: StudyRecords, trials: pd.DataFrame) -> pd.DataFrame:
    """The mean weights of each setting, over backbone layers, axes and finished trials: one column per normalizer."""
    compared = records.balanced_subset(trials, *APART, *task_factors(records.study))
    weights = records.switch.merge(compared[compared["state"].eq("done")][["key", TOGETHER]], on="key")
    means: pd.DataFrame = weights.groupby([TOGETHER, "normalizer"], sort=False)["weight"].mean().unstack("normalizer")
    return means
