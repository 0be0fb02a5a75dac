"""Question 1 with each norm at its own best: the level of a tuned factor is chosen per norm and cell, on validation.

The question itself compares norms under one recipe. If that recipe suits one norm better than another, the comparison
is of recipes. Where a study varies what matters for that (`analysis.tuned`, such as the learning rate), the level with
the best validation score is taken for every norm in every cell, and norms are compared by their test scores. For each
replicate the level is chosen on the other replicates.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from study.analysis.questions.level_comparisons import find_chance_levels
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import cell_numbers
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences


def compare_tuned(records: StudyRecords) -> list[PairedDifference]:
    """The reference norm minus every other norm, each at its own best level; empty where nothing is tuned."""
    tuned, reference = records.study.analysis.tuned, records.reference_norm
    if not tuned or reference is None:
        return []
    factors = [name for name in records.study.factors if name not in tuned]
    trials = select_best(records.from_scratch, factors, tuned, records.study.metric.replace("test", "val"))
    return [
        paired_differences(
            trials, factors=factors, factor="norm", reference=reference, other=norm,
            metric=records.study.metric.replace("val", "test"), confidence=records.confidence,
            chance=find_chance_levels(trials),
        )
        for norm in records.levels("norm") if norm != reference
    ]  # fmt: skip


def select_best(trials: pd.DataFrame, factors: Sequence[str], tuned: Sequence[str], metric: str) -> pd.DataFrame:
    """The trials at the best level of the tuned factors, for every replicate in every cell of the other factors.

    Best is the highest mean of `metric` over the other replicates that have ended, so that a level is not chosen for
    the luck of the runs that are then compared; with one replicate, its own value counts. A run that diverged counts
    as 0. All norms have the same levels to choose from. Where nothing has ended, the first level is kept.
    """
    scores = trials[metric].astype(float).mask(trials["state"].eq("diverged"), 0.0)
    cells = cell_numbers(trials, list(factors))
    of_level = scores.groupby([cells, cell_numbers(trials, list(tuned))])
    others = of_level.transform("count") - scores.notna()
    mean = (of_level.transform("sum") - scores.fillna(0.0)) / others.where(others > 0)
    mean = mean.fillna(scores).fillna(-1.0)
    chosen: pd.DataFrame = trials.loc[mean.groupby([cells, trials["replicate"]]).idxmax().sort_values()]
    return chosen
