"""The smallest difference of a number that counts as practical: a setting, or the resolution of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.config.schema import StudyConfig, TrialConfig
from study.plan.trials import list_corners, plan_cells
from study.plan.warm_start import build_config

MAIN_METRICS: Mapping[str, str] = {"classification": "accuracy", "segmentation": "miou", "detection": "box_ap"}
"""The metric that is the score of a task. `MarginConfig` has its margin."""
_SPLITS = ("train", "val", "test")  # in the order of `TrialConfig.split_sizes`


def compute_margin(study: StudyConfig, measure: str) -> float:
    """Returns the margin of a number, in its own unit.

    measure: a metric such as `val_accuracy` or `test_score`, or a measure of how far choices move (`effect` and
    `displacement`, also with an ending such as `effect_mean`). The margin of a metric is never below 1 / the number of
    images of its split, nor that of a score below the margin of any task in the study.
    Raises `ValueError` for any other name.
    """
    split, _, metric = measure.partition("_")
    if split in ("effect", "displacement"):
        return study.analysis.margins.displacement
    if split not in _SPLITS or metric not in ("accuracy", "score", *MAIN_METRICS.values()):
        raise ValueError(f"{measure}: no margin is defined for it")
    configs = _collect_configs(study)
    names = {MAIN_METRICS[config.task] for config in configs} if metric == "score" else {metric}
    smallest = min(config.split_sizes[_SPLITS.index(split)] for config in configs)
    margin: float = max(getattr(study.analysis.margins, name) for name in names)
    return max(margin, 1 / max(smallest, 1))


_DECISIVE = {"task", "dataset", "validation_fraction", "train_samples", "start_rule"}
"""The fields of a trial that a margin depends on; a start rule may bring settings with it."""


def _collect_configs(study: StudyConfig) -> list[TrialConfig]:
    """One config for each combination of the factors that a margin depends on."""
    decisive = [factor for factor in study.factors if factor in _DECISIVE or factor in study.joint]
    cells: dict[str, dict[str, Any]] = {}
    for cell in plan_cells(study) if study.search is None else list_corners(study, decisive):
        levels = {factor: cell[factor] for factor in decisive}
        cells.setdefault(repr(levels), levels)
    return [build_config(study, levels) for levels in cells.values()]
