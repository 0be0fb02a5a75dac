"""What another seed changes: initialization, order of the data and data split apart from each other.

A study with `seeds.apart` trains every cell again with one of these seeds at a time, all others those of replicate 0.
These runs share seeds, so they are no replicates: they are compared with each other only, and have no intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.seed_sources import pool_deviations, pool_distances
from study.analysis.wording import format_number, join_words
from study.config.seeds import SeedRole, find_seed_role

WORDS: dict[SeedRole, str] = {"init": "initialization", "data": "order of the data", "split": "data split"}


def seed_distance_rows(records: StudyRecords, trials: pd.DataFrame) -> list[Effect]:
    """How far each seed alone moves what networks choose: root mean squared distance between runs that differ in it.

    trials: the planned trials of the norm whose choices are studied.
    """
    rows = []
    for role, groups in _group_runs(records, trials):
        keys = [[key for key in group["key"] if key in records.profiles] for group in groups]
        value = pool_distances(np.stack([records.profiles[key] for key in each]) for each in keys if each)
        rows += _build_row(records, "seed_distance", role, groups, value)
    return rows


def seed_deviation_rows(records: StudyRecords, trials: pd.DataFrame) -> list[Effect]:
    """How far each seed alone moves the metric: standard deviation over runs that differ in it."""
    rows = []
    for role, groups in _group_runs(records, trials):
        value = pool_deviations(group[records.study.metric].dropna().to_numpy(dtype=float) for group in groups)
        rows += _build_row(records, "seed_deviation", role, groups, value)
    return rows


def format_seed_sources(rows: Sequence[Effect]) -> list[str]:
    """How far each seed alone moves a number."""
    if not rows:
        return []
    each = join_words(f"{row.comparison} {format_number(row.estimate.value or 0.0)}" for row in rows)
    return [f"Seeds varied apart, {rows[0].measure.label}: {each}."]


def _group_runs(records: StudyRecords, trials: pd.DataFrame) -> Iterator[tuple[SeedRole, list[pd.DataFrame]]]:
    """For each seed that is varied apart, the finished runs of every cell: replicate 0 and those that differ in it."""
    runs = records.seed_runs[records.seed_runs["trial_id"].isin(trials["trial_id"])]
    first = trials[trials["replicate"].eq(0)]
    for role in records.study.seeds.apart:
        own = runs[[find_seed_role(int(number)) == role for number in runs["replicate"]]]
        both = pd.concat([first, own])
        yield role, [group for _, group in both[both["state"].eq("done")].groupby("trial_id", sort=False)]


def _build_row(
    records: StudyRecords, measure: str, role: SeedRole, groups: Sequence[pd.DataFrame], value: float | None
) -> list[Effect]:
    if value is None:
        return []
    n_runs = sum(len(group) for group in groups)
    return [Effect(
        measure=records.measures[measure], comparison=f"{WORDS[role]} alone", n_pairs=n_runs, n_pairs_planned=n_runs,
        estimate=Estimate(value=float(value), n=max(len(group) for group in groups)),
        trials=sorted(int(row) for group in groups for row in group.index if row in records.trials.index),
    )]  # fmt: skip
