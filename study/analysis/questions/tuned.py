"""Question 1 with each norm at its own best: the level of a tuned factor is chosen per norm and cell, on validation.

The question itself compares norms under one recipe. If that recipe suits one norm better than another, the comparison
is of recipes. Where a study varies what matters for that (`analysis.tuned`, such as the learning rate), the level with
the best validation score is taken for every norm in every cell, and norms are compared by their test scores. For each
replicate the level is chosen on the other replicates. Where several levels are about equally good, a single replicate
changes which one is taken, so the values of replicates are not independent: an interval from their spread alone may
cover only 86 %. The choice is therefore repeated without each replicate (a jackknife).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from study.analysis.questions.level_comparisons import find_chance_levels
from study.analysis.records import StudyRecords
from study.analysis.statistics.cell_means import compute_p_value
from study.analysis.statistics.intervals import cell_numbers, jackknife_interval
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences


def compare_tuned(records: StudyRecords) -> list[PairedDifference]:
    """The reference norm minus every other norm, each at its own best level; empty where nothing is tuned."""
    tuned, reference = records.study.analysis.tuned, records.reference_norm
    if not tuned or reference is None:
        return []
    trials = records.from_scratch
    whole = _compare_best(records, trials, reference)
    left_out = [
        _compare_best(records, trials[trials["replicate"].ne(replicate)].reset_index(drop=True), reference)
        for replicate in range(records.study.replicates)
    ]
    return [
        _widen(item, [found.estimate.value for found in without], records.confidence)
        for item, *without in zip(whole, *left_out, strict=True)
    ]


def _compare_best(records: StudyRecords, trials: pd.DataFrame, reference: str) -> list[PairedDifference]:
    tuned = records.study.analysis.tuned
    factors = [name for name in records.study.factors if name not in tuned]
    chosen = select_best(trials, factors, tuned, records.study.metric.replace("test", "val"))
    return [
        paired_differences(
            chosen, factors=factors, factor="norm", reference=reference, other=norm,
            metric=records.study.metric.replace("val", "test"), confidence=records.confidence,
            chance=find_chance_levels(chosen),
        )
        for norm in records.levels("norm") if norm != reference
    ]  # fmt: skip


def _widen(item: PairedDifference, left_out: Sequence[float | None], confidence: float) -> PairedDifference:
    """With the jackknife's interval where that is wider. left_out: the estimate without each replicate."""
    own, known = item.estimate, [value for value in left_out if value is not None]
    if own.value is None or own.low is None or len(known) < len(left_out):
        return item
    wide = jackknife_interval([own.value, *known], confidence)
    estimate = wide if wide.low is not None and wide.low < own.low else own
    return replace(item, estimate=estimate, p_value=compute_p_value(estimate, confidence), bootstrap=None)


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
