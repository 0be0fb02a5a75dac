"""Margins: settings of the study, never below the resolution of the split."""

from __future__ import annotations

from typing import Any

import pytest

from study.config.schema import StudyConfig
from study.plan.loading import study_from_dict
from study.plan.margins import compute_margin


def _study(base: dict[str, Any], margins: dict[str, float] | None = None, **settings: Any) -> StudyConfig:
    return study_from_dict(
        {"name": "s", "scale": "t", "title": "t", "question": "q", "replicates": 2, "base": base,
         "factors": {"norm": ["sn", "bn"]}, "analysis": {"margins": margins or {}}, **settings}, "test",
    )  # fmt: skip


def test_the_margin_is_the_setting_where_the_split_is_large() -> None:
    study = _study({"dataset": "cifar10"}, {"accuracy": 0.02})
    assert compute_margin(study, "val_accuracy") == compute_margin(study, "test_score") == 0.02


def test_the_margin_is_never_below_one_image() -> None:
    study = _study({"dataset": "digits", "validation_fraction": 0.05}, {"accuracy": 0.0})
    _, validation, test = study.base.split_sizes
    assert compute_margin(study, "val_accuracy") == pytest.approx(1 / validation)
    assert compute_margin(study, "test_accuracy") == pytest.approx(1 / test)


def test_the_smallest_split_of_the_study_decides() -> None:
    factors = {"norm": ["sn", "bn"], "dataset": ["fashion_mnist", "digits"]}
    study = _study({}, {"accuracy": 0.0}, factors=factors)
    digits = study.apply_levels({"dataset": "digits"})
    assert compute_margin(study, "val_accuracy") == pytest.approx(1 / digits.split_sizes[1])


def test_settings_that_a_level_brings_with_it_count() -> None:
    joint = {"data": {"many": {"dataset": "fashion_mnist"}, "few": {"dataset": "digits"}}}
    study = _study({}, {"accuracy": 0.0}, factors={"norm": ["sn"], "data": ["many", "few"]}, joint=joint)
    assert compute_margin(study, "test_accuracy") == pytest.approx(1 / 359)


def test_a_score_has_the_largest_margin_of_its_tasks() -> None:
    factors = {"norm": ["sn"], "task": ["classification", "detection"]}
    study = _study({"dataset": "scenes"}, {"accuracy": 0.03, "box_ap": 0.04, "miou": 0.5}, factors=factors)
    assert compute_margin(study, "test_score") == 0.04
    assert compute_margin(study, "test_accuracy") == 0.03


def test_a_search_counts_the_ends_of_its_ranges() -> None:
    factors = {"norm": ["sn"], "validation_fraction": {"low": 0.01, "high": 0.5}}
    search = {"sampler": "random", "n_trials": 4}
    study = _study({"dataset": "digits"}, {"accuracy": 0.0}, factors=factors, search=search)
    assert compute_margin(study, "val_accuracy") == pytest.approx(1 / round(0.01 * (1797 - 359)))


@pytest.mark.parametrize("measure", ["effect", "effect_mean", "displacement", "displacement_var"])
def test_distances_have_the_margin_of_displacement(measure: str) -> None:
    assert compute_margin(_study({}, {"displacement": 0.1}), measure) == 0.1


@pytest.mark.parametrize("measure", ["train_loss", "val_loss", "seconds", ""])
def test_other_numbers_have_no_margin(measure: str) -> None:
    with pytest.raises(ValueError, match="no margin"):
        compute_margin(_study({}), measure)
