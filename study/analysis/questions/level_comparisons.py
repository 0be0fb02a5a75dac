"""Compares two levels of a factor over a study's trials, and what such a comparison can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from study.analysis.questions.verdicts import Claim
from study.analysis.records import StudyRecords
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.analysis.statistics.time_to_target import TIME, epochs_to_target
from study.config.datasets import DATASETS


def compare_levels(
    records: StudyRecords, trials: pd.DataFrame, *, factor: str, reference: object, other: object, metric: str
) -> PairedDifference:
    """`paired_differences` of some of a study's trials. Time to target is measured for the two levels compared."""
    factors, times = list(records.study.factors), pd.DataFrame()
    if metric == TIME:
        times = epochs_to_target(
            trials, records.curves, factors=factors, factor=factor, levels=[reference, other],
            metric=records.study.metric.replace("test", "val"),
        )  # fmt: skip
        trials = trials.assign(**{TIME: times[TIME]})
    found = paired_differences(
        trials, factors=factors, factor=factor, reference=reference, other=other, metric=metric,
        confidence=records.confidence, chance=find_chance_levels(trials) if _is_main(records, metric) else None,
    )  # fmt: skip
    return found if times.empty else replace(found, censored=int(times.loc[list(found.trials), "censored"].sum()))


def _is_main(records: StudyRecords, metric: str) -> bool:
    """Whether a metric is that by which trials are compared, on any split."""
    return metric.partition("_")[2] == records.study.metric.partition("_")[2]


def find_chance_levels(trials: pd.DataFrame) -> pd.Series:
    """The score of guessing, by row: 1 / number of classes for a classifier, and 0 for mIoU and average precision."""
    levels = [
        1 / DATASETS[dataset].classes if task == "classification" else 0.0
        for task, dataset in zip(trials["task"], trials["dataset"], strict=True)
    ]
    chance: pd.Series = pd.Series(levels, index=trials.index, dtype=float)
    return chance


def build_claims(items: Sequence[PairedDifference], margin: float) -> dict[str, Claim]:
    """`build_claim` of every comparison, by its other level."""
    return {str(item.other): build_claim(item, margin) for item in items}


def build_claim(item: PairedDifference, margin: float) -> Claim:
    """The claim that the reference gains more than the margin, and which verdicts on it the data allow.

    A level that diverged more often in any cell cannot win by the runs that it lost. Where every run of a level
    diverged in a cell, but these are few, the other cells must say the same. Where cells are empty, only what holds for
    every score that they could have had is allowed: the worst case can support, and the best case can refute.
    """
    can_support, can_refute = not item.reference_diverged_more, not item.other_diverged_more
    if item.without_chance is not None:
        can_support &= item.without_chance.above(margin)
        can_refute &= item.without_chance.below(margin)
    if not item.empty_cells:
        return Claim(estimate=item.estimate, margin=margin, can_support=can_support, can_refute=can_refute)
    if item.worst is None or item.best is None:
        return Claim(estimate=item.estimate, margin=margin, can_support=False, can_refute=False)
    if item.worst.above(margin):
        return Claim(estimate=item.worst, margin=margin, can_support=can_support, can_refute=False)
    return Claim(estimate=item.best, margin=margin, can_support=False, can_refute=can_refute)
