"""Question 3: do tasks and data sets prefer different normalizers?

The paper (arXiv 1811.07727) says that tasks and data sets behave differently while their networks learn to select. Here
task and data set are factors as those of question 2: how far do they move what backbones choose, over how far seeds do?
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from study.analysis.answers import MIN_CELLS, Answer, Verdict, join_words, show_number
from study.analysis.choices import (
    EFFECT,
    MARGIN,
    ChoiceDistances,
    closing_sentences,
    common_needs,
    company_sentences,
    effect_rows,
    factor_sentences,
    measure_distances,
    replicates_need,
    select_choices,
)
from study.analysis.profiles import count_cell_pairs
from study.analysis.records import StudyRecords
from study.analysis.statistics import Estimate
from study.config import StudyConfig

TITLE = "Do tasks and data sets prefer different normalizers?"
APART = ("task", "dataset")
TOGETHER = "task on dataset"  # both as one factor, where tasks have no data set in common


def answer_tasks(records: StudyRecords) -> Answer:
    """Measures how far task and data set move the choices of backbones. Works on any part of a study."""
    confidence = records.study.analysis.confidence
    trials = name_settings(select_choices(records))
    distances = measure_distances(records, trials, _factors(records, trials))
    ranked = distances.rank(confidence)
    effects = {name: ranked[name] for name in (*APART, TOGETHER) if name in ranked}
    verdict = decide(effects, covered=distances.covered)
    return Answer(
        title=TITLE, verdict=verdict,
        answer=_sentences(records, trials, verdict, distances, effects),
        rule=_rule(confidence), effects=effect_rows(distances, confidence),
        n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_needs(records, verdict, distances, effects),
    )  # fmt: skip


def decide(effects: Mapping[str, Estimate], *, covered: bool) -> Verdict:
    """The rule that `_rule` puts into words, on the effects of task and data set."""
    if covered and any(item.above(1) for item in effects.values()):
        return "supported"
    if covered and effects and all(item.below(MARGIN) for item in effects.values()):
        return "not supported"
    return "not enough evidence"


def name_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a column `TOGETHER`: "detection on scenes"."""
    named: pd.DataFrame = trials.assign(
        **{TOGETHER: trials["task"].astype(str) + " on " + trials["dataset"].astype(str)}
    )
    return named


def task_factors(study: StudyConfig) -> list[str]:
    """The factors of a study with which task or data set change."""
    return [name for name in study.factors if {*APART} & {name, *study.fields_of(name)}]


def _factors(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """Columns of `trials`: task and data set, or both as one, then what else the study varies."""
    others = [name for name in records.study.factors if name not in ("norm", *task_factors(records.study))]
    alone = count_cell_pairs(trials[[*APART, *others]].drop_duplicates(), "task")
    return [*APART, *others] if alone or trials["task"].nunique() < 2 else [TOGETHER, *others]


def _rule(confidence: float) -> str:
    return (
        f"{EFFECT} Supported: the {confidence * 100:g} % interval of the effect of task, or of dataset, lies above 1. "
        f"Not supported: it lies below {MARGIN:g} for each of them that varies. Otherwise: not enough evidence. It "
        f"needs {MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Where tasks have no data set in common, "
        f"the two cannot be told apart and count as one factor, {TOGETHER}. Heads are shown and do not decide."
    )


def _sentences(
    records: StudyRecords, trials: pd.DataFrame, verdict: Verdict,
    distances: ChoiceDistances, effects: Mapping[str, Estimate],
) -> str:  # fmt: skip
    if records.reference_norm is None:
        return "The study holds no switch norm, so there is no choice to look at."
    if not len(distances.cells):
        return f"No run of {records.reference_norm} has finished with switch weights."
    moving = join_words([name for name, item in effects.items() if item.above(1)] or ["none"])
    opening = {
        "supported": f"Yes, in this study: backbones choose differently by {moving}.",
        "not supported": f"No, in this study: {join_words(effects or ['none'])} move the choice no further than seeds.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    parts = [opening, *factor_sentences(distances, records.study.analysis.confidence)]
    parts += [*_preferences(records, trials), *company_sentences(records.study, task_factors(records.study), APART)]
    return " ".join([*parts, *closing_sentences(records, trials)])


def _preferences(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """The mean weights of each setting: over layers of the backbone, both statistics and finished runs."""
    comparable = records.comparable(trials, *APART, *task_factors(records.study))
    weights = records.switch.merge(comparable[comparable["state"].eq("done")][["key", TOGETHER]], on="key")
    means = weights.groupby([TOGETHER, "normalizer"], sort=False)["weight"].mean().unstack("normalizer")
    each = [
        f"{setting} {', '.join(f'{name} {show_number(weight, 2)}' for name, weight in row.dropna().items())}"
        for setting, row in means.iterrows()
    ]
    return [f"Mean weights of the backbone: {'; '.join(each)}."]


def _needs(
    records: StudyRecords, verdict: Verdict, distances: ChoiceDistances, effects: Mapping[str, Estimate]
) -> list[str]:
    """What would settle it, where it is not settled."""
    if verdict != "not enough evidence":
        return []
    if records.reference_norm is None:
        return ["runs of a switch norm (sn)"]
    planned = distances.planned_cells
    varied = [name for name in (*APART, TOGETHER) if name in planned and count_cell_pairs(planned, name)]
    needs = [] if varied else ["cells that differ in task, or in dataset, alone"]
    needs += common_needs(distances)
    for name, item in effects.items():
        needs += [f"{name}: {need}" for need in replicates_need(item, records.study.analysis.confidence)]
    return needs
