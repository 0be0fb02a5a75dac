"""The levels of a factor by which a figure is split, in their order and with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.analysis.records import StudyRecords

LEVEL = "level"  # the column with the label of each trial's level: categories, ordered if the levels are numbers


def split_by_level(records: StudyRecords, trials: pd.DataFrame, factor: str) -> pd.DataFrame:
    """The trials with a column `LEVEL`: numeric levels in ascending order, others in the study's order."""
    values = [_replace_missing(value) for value in trials[factor]]
    found = list(dict.fromkeys(values))
    ordered = all(type(level) in (int, float) for level in found)
    listed = records.study.factors.get(factor)
    if ordered:
        found.sort()
    elif isinstance(listed, list):
        found.sort(key=lambda level: listed.index(level) if level in listed else len(listed))
    labels = [format_level(factor, level) for level in found]
    levels = pd.Categorical([format_level(factor, value) for value in values], labels, ordered=ordered)
    split: pd.DataFrame = trials.assign(**{LEVEL: levels})
    return split


def keep_largest_pools(trials: pd.DataFrame) -> pd.DataFrame:
    """Of each level, the trials whose layers may choose from its largest pool. trials: from `split_by_level`."""
    parts = [select_largest_pool(part) for _, part in trials.groupby(LEVEL, observed=True)]
    kept: pd.DataFrame = pd.concat(parts).sort_index() if parts else trials
    return kept


def list_levels(trials: pd.DataFrame) -> list[str]:
    """The labels of the levels that occur, in their order. trials: from `split_by_level`."""
    return [str(level) for level in trials[LEVEL].cat.remove_unused_categories().cat.categories]


def choose_ends(trials: pd.DataFrame, most: int = 2) -> list[str]:
    """Two levels to show where there is no room for more than `most`: the lowest and the highest, or the first two."""
    levels = list_levels(trials)
    if len(levels) <= most:
        return levels
    return [levels[0], levels[-1]] if trials[LEVEL].cat.ordered else levels[:2]


def format_level(factor: str, level: Any) -> str:
    """A level of a factor: `B = 16`, `depth = 8`, `segmentation on scenes`."""
    if isinstance(level, str):
        return level
    name = "B" if factor == "batch_size" else format_factor(factor)
    return f"{name} = {level:g}" if type(level) in (int, float) else f"{name} = {level}"


def shorten_levels(levels: Sequence[str]) -> list[str]:
    """The labels for an axis that names the factor: `16`, `segmentation on scenes`."""
    return [level.rpartition(" = ")[2] for level in levels]


def format_factor(factor: str) -> str:
    """A factor in words: `batch size`."""
    return factor.replace("_", " ")


def select_largest_pool(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with the largest pool."""
    largest: pd.DataFrame = trials[trials["pool"].eq(find_largest_pool(trials))]
    return largest


def find_largest_pool(trials: pd.DataFrame) -> str:
    """The largest pool as text: `in,ln,bn`."""
    return max(trials["pool"], key=len, default="")


def _replace_missing(value: Any) -> Any:
    """The value as Python has it; a column of numbers stores None as NaN."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and value != value else value
