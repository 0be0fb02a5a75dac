"""What other analyses would say about whether the switch norm is useful: question 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from study.analysis.questions.level_comparisons import find_chance_levels
from study.analysis.questions.robustness import LAST_FIFTH, Analysis, Robustness
from study.analysis.questions.useful import compare_norms, decide
from study.analysis.records import StudyRecords
from study.analysis.trial_files import CURVES
from study.analysis.weight_tables import find_first_late_epoch
from study.plan.analysis_plan import LAST_EPOCH

FINISHED_PAIRS = "diverged runs left out"
AT_CHANCE = "diverged runs at chance level"


def explore_useful(records: StudyRecords) -> Robustness:
    """The verdicts by both splits, by moment, and by what a diverged run counts; the planned analysis first.

    Only the validation curve is recorded, so the test split has no mean over the last fifth of the epochs.
    """
    analyses = []
    for metric in _list_metrics(records.study.metric):
        for moment, trials in _select_moments(records, metric):
            for divergence, counted in _count_diverged(trials, metric):
                values = {
                    "metric": _name_metric(records, metric), "moment": moment, "divergence": divergence,
                }  # fmt: skip
                analyses.append(_judge(replace(records, trials=counted), metric, values))
    return Robustness(analyses=analyses)


def count_as_chance(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The trials with diverged runs as finished ones that have the score of guessing."""
    diverged = trials["state"].eq("diverged")
    chance = find_chance_levels(trials)
    counted: pd.DataFrame = trials.assign(**{
        "state": trials["state"].mask(diverged, "done"), metric: trials[metric].mask(diverged, chance),
    })  # fmt: skip
    return counted


def _judge(records: StudyRecords, metric: str, values: dict[str, str]) -> Analysis:
    comparisons, margin = compare_norms(records, metric), records.margin(metric)
    return Analysis(
        choices=values, verdict=decide(comparisons, margin, records.confidence),
        estimates={f"{item.reference} - {item.other}": item.estimate for item in comparisons}, margin=margin,
    )  # fmt: skip


def _list_metrics(planned: str) -> list[str]:
    """The planned metric, and the same on the other split."""
    split, _, name = planned.partition("_")
    other = {"val": "test", "test": "val"}.get(split)
    return [planned, f"{other}_{name}"] if other else [planned]


def _name_metric(records: StudyRecords, metric: str) -> str:
    """`test accuracy`."""
    return records.measures[metric].label if metric in records.measures else metric.replace("_", " ")


def _select_moments(records: StudyRecords, metric: str) -> Iterator[tuple[str, pd.DataFrame]]:
    yield LAST_EPOCH, records.trials
    means = average_late_epochs(records.curves, metric)
    if not means.empty:
        late = records.trials["key"].map(means).astype(float)
        yield LAST_FIFTH, records.trials.assign(**{metric: late.where(records.trials["state"].eq("done"))})


def _count_diverged(trials: pd.DataFrame, metric: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The trials with diverged runs left out and, if there are any, counted at chance level."""
    yield FINISHED_PAIRS, trials
    if trials["state"].eq("diverged").any():
        yield AT_CHANCE, count_as_chance(trials, metric)


def average_late_epochs(curves: pd.DataFrame, metric: str) -> pd.Series:
    """The mean of a metric over the last fifth of each trial's epochs, by key; empty if it has no curve."""
    name = metric if metric in CURVES else "val_score" if metric in ("val_miou", "val_box_ap") else None
    rows = curves[curves["name"].eq(name or "") & curves["value"].notna()]
    last = rows.groupby("key")["epoch"].transform("max")
    means: pd.Series = rows[rows["epoch"].ge(find_first_late_epoch(last))].groupby("key")["value"].mean()
    return means
