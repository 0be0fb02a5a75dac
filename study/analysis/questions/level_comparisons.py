"""Compares two levels of a factor over a study's trials."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from study.analysis.records import StudyRecords
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.analysis.statistics.time_to_target import TIME, epochs_to_target


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
        confidence=records.study.analysis.confidence,
    )  # fmt: skip
    return found if times.empty else replace(found, censored=int(times.loc[list(found.trials), "censored"].sum()))
