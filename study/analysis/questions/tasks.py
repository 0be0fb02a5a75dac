"""Question 3: do tasks and data sets prefer different normalizers?

The paper (arXiv 1811.07727) says that networks of different tasks and data sets learn to select differently. Task and
data set are factors as those of question 2: how far do they move what backbones choose, relative to another seed?
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from study.analysis.questions import sentences
from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.factor_effects import (
    RATIO_MARGIN,
    ChoiceDistances,
    adjust_ratio_p_values,
    factor_row,
    find_distinguished,
    measure_distances,
    select_choices,
)
from study.analysis.questions.factor_question import Details, FactorQuestion, answer_factor_question
from study.analysis.questions.transfer import compare_after, compare_before_and_after, select_fine_tuned
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.profiles import count_cell_pairs, depth_profiles
from study.config.schema import StudyConfig
from study.plan.trials import find_factor_fields

APART = ("task", "dataset")
TOGETHER = "task on dataset"  # both as one factor, where tasks have no data set in common


def answer_tasks(records: StudyRecords) -> Answer:
    """Measures how far task and data set move the choices of backbones. Works on any part of a study."""
    return answer_factor_question(_Tasks(), records)


def decide(effects: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
    """The verdict on the effects of task and data set; `sentences.format_tasks_rule` says it in words."""
    if covered and find_distinguished(effects, 1, confidence):
        return "supported"
    if covered and effects and all(effect.below(RATIO_MARGIN) for effect in effects.values()):
        return "not supported"
    return "not enough evidence"


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

    def find_deciding(self, distances: ChoiceDistances, confidence: float) -> dict[str, Estimate]:
        ranked = distances.rank(confidence)
        return {name: ranked[name] for name in (*APART, TOGETHER) if name in ranked}

    def decide(self, deciding: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
        return decide(deciding, confidence, covered=covered)

    def find_deciding_rows(
        self, distances: ChoiceDistances, deciding: Mapping[str, Estimate], confidence: float
    ) -> list[Effect]:
        return []  # they are effects of factors

    def find_details(self, records: StudyRecords, trials: pd.DataFrame, distances: ChoiceDistances) -> Details:
        confidence = records.study.analysis.confidence
        heads, transfer = _find_head_rows(records, trials), _find_transfer_rows(records, distances)
        return Details(
            effects=[*heads, *transfer],
            sentences=[
                sentences.format_preferences(_mean_weights(records, trials)),
                *sentences.format_head_effects(heads, confidence),
                *sentences.format_transfer(transfer, confidence),
            ],
        )

    def open_answer(self, verdict: Verdict, deciding: Mapping[str, Estimate], confidence: float) -> str:
        return sentences.open_tasks(verdict, list(deciding), find_distinguished(deciding, 1, confidence))

    def format_rule(self, confidence: float) -> str:
        return sentences.format_tasks_rule(TOGETHER, confidence)

    def name_missing_variation(self, distances: ChoiceDistances) -> list[str]:
        planned = distances.planned_cells
        varied = [name for name in (*APART, TOGETHER) if name in planned and count_cell_pairs(planned, name)]
        return [] if varied else ["cells that differ in task, or in dataset, alone"]

    def name_co_varying(self, records: StudyRecords) -> list[str]:
        return sentences.format_co_varying(records.study, task_factors(records.study), APART)


def _find_factors(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """Task and data set, or both as one factor, then what else the study varies."""
    others = [name for name in records.study.factors if name not in ("norm", *task_factors(records.study))]
    alone = count_cell_pairs(trials[[*APART, *others]].drop_duplicates(), "task")
    return [*APART, *others] if alone or trials["task"].nunique() < 2 else [TOGETHER, *others]


def _find_head_rows(records: StudyRecords, trials: pd.DataFrame) -> list[Effect]:
    """The effects of data set, batch size and so on what the layers of heads choose, by role, within each task."""
    confidence, rows = records.study.analysis.confidence, []
    for role, switch in records.heads.groupby("role", sort=True):
        profiles = depth_profiles(switch, records.space)
        tasks = trials["task"][trials["key"].isin(list(profiles))].unique()
        for task in tasks:
            of_task = trials[trials["task"].eq(task)]
            factors = [name for name in _find_factors(records, of_task) if name not in ("task", TOGETHER)]
            distances = measure_distances(profiles, of_task, factors, records.space)
            ranked = distances.rank(confidence)
            p_values = adjust_ratio_p_values(ranked, 1, confidence)
            rows += [
                factor_row(distances, "effect_heads", f"{name}, {role} of {task}", [name], effect, p_values[name])
                for name, effect in ranked.items()
            ]
    return rows


def _find_transfer_rows(records: StudyRecords, distances: ChoiceDistances) -> list[Effect]:
    """What fine-tuning does to choices, in a study that fine-tunes; `distances` are those of trials from scratch."""
    tuned = name_settings(select_fine_tuned(records, name_settings(records.trials)[TOGETHER]))
    if tuned.empty:
        return []
    after = measure_distances(records.profiles, tuned, _find_factors(records, tuned), records.space)
    confidence = records.study.analysis.confidence
    return [
        *compare_before_and_after(records, tuned),
        *compare_after(distances, after, [*APART, TOGETHER], confidence),
    ]


def _mean_weights(records: StudyRecords, trials: pd.DataFrame) -> pd.DataFrame:
    """The mean weights of each setting, over backbone layers, axes and finished trials: one column per normalizer."""
    compared = records.balanced_subset(trials, *APART, *task_factors(records.study))
    weights = records.switch.merge(compared[compared["state"].eq("done")][["key", TOGETHER]], on="key")
    means: pd.DataFrame = weights.groupby([TOGETHER, "normalizer"], sort=False)["weight"].mean().unstack("normalizer")
    return means
