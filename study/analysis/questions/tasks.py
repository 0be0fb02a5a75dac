"""Question 3: do tasks and data sets prefer different normalizers?

The paper (arXiv 1811.07727) says that tasks and data sets behave differently while their networks learn to select. Here
task and data set are factors as those of question 2: how far do they move what backbones choose, over how far seeds do?
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from study.analysis.questions.answers import (
    MIN_CELLS,
    Answer,
    Effect,
    Verdict,
    format_estimate,
    format_number,
    join_words,
)
from study.analysis.questions.factor_effects import (
    EFFECT,
    RATIO_MARGIN,
    ChoiceDistances,
    closing_sentences,
    common_needs,
    company_sentences,
    effect_rows,
    factor_row,
    factor_sentences,
    holm_p_values,
    measure_distances,
    replicates_need,
    select_choices,
    share_rows,
    share_sentences,
    tell_apart_from,
)
from study.analysis.questions.transfer import compare_after, compare_before_and_after, fine_tuned, transfer_sentences
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.profiles import count_cell_pairs, depth_profiles
from study.config.schema import StudyConfig
from study.plan.trials import find_factor_fields

TITLE = "Do tasks and data sets prefer different normalizers?"
APART = ("task", "dataset")
TOGETHER = "task on dataset"  # both as one factor, where tasks have no data set in common


def answer_tasks(records: StudyRecords) -> Answer:
    """Measures how far task and data set move the choices of backbones. Works on any part of a study."""
    confidence = records.study.analysis.confidence
    trials = name_settings(select_choices(records))
    distances = measure_distances(records.profiles, trials, _factors(records, trials))
    ranked = distances.rank(confidence)
    decisive = {name: ranked[name] for name in (*APART, TOGETHER) if name in ranked}
    verdict = decide(decisive, confidence, covered=distances.covered)
    effects = [*effect_rows(distances, confidence), *share_rows(distances, confidence)]
    effects += head_rows(records, trials)
    effects += transfer_rows(records, distances)
    return Answer(
        title=TITLE, verdict=verdict,
        answer=" ".join(_sentences(records, trials, verdict, distances, decisive, effects)),
        rule=_rule(confidence), effects=effects,
        n_done=int(trials["state"].eq("done").sum()), n_planned=len(trials),
        needs=_needs(records, verdict, distances, decisive),
    )  # fmt: skip


def decide(effects: Mapping[str, Estimate], confidence: float, *, covered: bool) -> Verdict:
    """The rule that `_rule` puts into words, on the effects of task and data set."""
    if covered and tell_apart_from(effects, 1, confidence):
        return "supported"
    if covered and effects and all(item.below(RATIO_MARGIN) for item in effects.values()):
        return "not supported"
    return "not enough evidence"


def head_rows(records: StudyRecords, trials: pd.DataFrame) -> list[Effect]:
    """The effects of data set, batch size and so on what heads choose: of each role, within its task."""
    confidence, rows = records.study.analysis.confidence, []
    for role, switch in records.heads.groupby("role", sort=True):
        profiles = depth_profiles(switch)
        tasks = trials["task"][trials["key"].isin(list(profiles))].unique()
        for task in tasks:
            of_task = trials[trials["task"].eq(task)]
            factors = [name for name in _factors(records, of_task) if name not in ("task", TOGETHER)]
            distances = measure_distances(profiles, of_task, factors)
            rank = distances.rank(confidence)
            p_values = holm_p_values(rank, 1, confidence)
            rows += [
                factor_row(distances, "effect_heads", f"{name}, {role} of {task}", [name], item, p_values[name])
                for name, item in rank.items()
            ]
    return rows


def transfer_rows(records: StudyRecords, distances: ChoiceDistances) -> list[Effect]:
    """What becomes of choices by fine-tuning, in a study that does; `distances` are those of its plain trials."""
    tuned = name_settings(fine_tuned(records, name_settings(records.trials)[TOGETHER]))
    if tuned.empty:
        return []
    after = measure_distances(records.profiles, tuned, _factors(records, tuned))
    confidence = records.study.analysis.confidence
    return [
        *compare_before_and_after(records, tuned),
        *compare_after(distances, after, [*APART, TOGETHER], confidence),
    ]


def name_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a column `TOGETHER`: "detection on scenes"."""
    named: pd.DataFrame = trials.assign(
        **{TOGETHER: trials["task"].astype(str) + " on " + trials["dataset"].astype(str)}
    )
    return named


def task_factors(study: StudyConfig) -> list[str]:
    """The factors of a study with which task or data set change."""
    return [name for name in study.factors if {*APART} & {name, *find_factor_fields(study, name)}]


def _factors(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """Columns of `trials`: task and data set, or both as one, then what else the study varies."""
    others = [name for name in records.study.factors if name not in ("norm", *task_factors(records.study))]
    alone = count_cell_pairs(trials[[*APART, *others]].drop_duplicates(), "task")
    return [*APART, *others] if alone or trials["task"].nunique() < 2 else [TOGETHER, *others]


def _rule(confidence: float) -> str:
    return (
        f"{EFFECT} Supported: the effect of task, or of dataset, lies above 1 (one-sided t test; p, adjusted by Holm "
        f"where there are two, below {(1 - confidence) / 2:g}). Else not supported: its {confidence * 100:g} % "
        f"interval lies below {RATIO_MARGIN:g} for each of them that varies. Otherwise: not enough evidence. It needs "
        f"{MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Where tasks have no data set in common, the "
        f"two cannot be told apart and count as one factor, {TOGETHER}. Heads, compared within their task, and "
        f"transfer are shown and do not decide."
    )


def _sentences(
    records: StudyRecords, trials: pd.DataFrame, verdict: Verdict,
    distances: ChoiceDistances, decisive: Mapping[str, Estimate], effects: list[Effect],
) -> list[str]:  # fmt: skip
    if records.reference_norm is None:
        return ["The study holds no switch norm, so there is no choice to look at."]
    if not len(distances.cells):
        return [f"No run of {records.reference_norm} has finished with switch weights."]
    confidence = records.study.analysis.confidence
    moving, varying = (
        join_words(names or ["none"]) for names in (tell_apart_from(decisive, 1, confidence), list(decisive))
    )
    opening = {
        "supported": f"Yes, in this study: backbones choose differently by {moving}.",
        "not supported": f"No, in this study: {varying} move the choice no further than seeds.",
        "not enough evidence": "It cannot be said yet.",
    }[verdict]
    parts = [opening, *factor_sentences(distances, confidence), *share_sentences(effects)]
    parts += [*_preferences(records, trials), *_head_sentences(effects, confidence)]
    parts += transfer_sentences(effects, confidence)
    parts += company_sentences(records.study, task_factors(records.study), APART)
    return [*parts, *closing_sentences(records, trials)]


def _head_sentences(effects: list[Effect], confidence: float) -> list[str]:
    rows = [row for row in effects if row.measure == "effect_heads" and row.estimate.value is not None]
    said = "; ".join(f"{row.comparison} {format_estimate(row.estimate, confidence, digits=2)}" for row in rows)
    return [f"Heads, within their task, the effects of: {said}."] if rows else []


def _preferences(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """The mean weights of each setting: over layers of the backbone, both statistics and finished runs."""
    balanced_subset = records.balanced_subset(trials, *APART, *task_factors(records.study))
    weights = records.switch.merge(balanced_subset[balanced_subset["state"].eq("done")][["key", TOGETHER]], on="key")
    means = weights.groupby([TOGETHER, "normalizer"], sort=False)["weight"].mean().unstack("normalizer")
    each = [
        f"{setting} {', '.join(f'{name} {format_number(weight, 2)}' for name, weight in row.dropna().items())}"
        for setting, row in means.iterrows()
    ]
    return [f"Mean weights of the backbone: {'; '.join(each)}."]


def _needs(
    records: StudyRecords, verdict: Verdict, distances: ChoiceDistances, decisive: Mapping[str, Estimate]
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
    confidence = records.study.analysis.confidence
    for name, item in decisive.items():
        needs += [f"{name}: {need}" for need in replicates_need(distances, [name], item, confidence)]
    return needs
