"""Power analysis: against simulated tests, published tables and known reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from study.plan.loading import load_study
from study.plan.power_analysis import compute_detectable_effect, compute_power, describe_power, find_required_replicates
from study.record.io import write_json
from study.record.layout import StudyFolder


def test_the_power_is_the_share_of_t_tests_that_detect_the_effect() -> None:
    draws = np.random.default_rng(7).normal(0.8, 1.0, (20_000, 9))
    detected = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert compute_power(9, 0.8, 0.95) == pytest.approx(detected.mean(), abs=0.01)


def test_without_an_effect_the_power_is_the_level_of_the_test() -> None:
    assert compute_power(5, 0.0, 0.95) == pytest.approx(0.05)


@pytest.mark.parametrize(("effect", "needed"), [(1.0, 10), (0.5, 34), (0.2, 199)])  # G*Power, paired, two-sided
def test_required_replicates_are_those_of_published_tables(effect: float, needed: int) -> None:
    assert find_required_replicates(effect, 0.95) == needed
    assert compute_detectable_effect(needed, 0.95) <= effect < compute_detectable_effect(needed - 1, 0.95)


def test_there_is_no_number_above_a_thousand_replicates() -> None:
    assert find_required_replicates(0.01, 0.95) is None


def test_required_replicates_are_estimated_from_the_last_report(tmp_path: Path) -> None:
    study, folder = load_study("depth_vs_batch", "laptop"), StudyFolder(tmp_path)
    gains = [0.01, 0.02, 0.03]  # a standard deviation of 0.01: the margin of 0.005 is half of it
    difference = {"measure": "val_accuracy", "comparison": "sn - bn", "per_replicate": gains, "n": 3}
    moved = {"measure": "effect", "comparison": "depth", "interval": [0.1, 0.2], "n": 4}
    questions = {"useful": {"effects": [difference]}, "impacts": {"effects": [moved]}}
    write_json(folder.report / "answers.json", {"questions": questions})
    lines = "\n".join(describe_power(study, folder))
    assert "the last report is 0.01 (sn - bn): to detect 0.005 takes 34 replicates" in lines
    deviation = 0.05 * 2 / stats.t.ppf(0.975, 3)
    assert f"depth in the last report: {find_required_replicates(0.05 / deviation, 0.95)}" in lines


@pytest.mark.parametrize(
    "questions",
    [
        [], 3, {"useful": {"effects": 3}, "impacts": []}, {"useful": {"effects": [3, {"measure": ["x"]}]}},
        {"useful": {"effects": [{"measure": "val_accuracy", "comparison": {}, "n": 3, "per_replicate": "abc"}]}},
        {"impacts": {"effects": [{"measure": "effect", "comparison": "depth", "n": "x", "interval": [1]}]}},
    ],
)  # fmt: skip
def test_a_report_of_another_format_is_ignored(tmp_path: Path, questions: object) -> None:
    study, folder = load_study("depth_vs_batch", "laptop"), StudyFolder(tmp_path)
    write_json(folder.report / "answers.json", {"questions": questions})
    assert "there is no report yet" in "\n".join(describe_power(study, folder))
