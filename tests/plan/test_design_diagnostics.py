"""What `plan` says of a design: known designs, the power of known tests, the disk."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from study.plan.design_diagnostics import (
    check_disk,
    describe_design,
    find_aliases,
    find_confounded,
    find_moving,
    find_problems,
    find_uncrossed,
    power_of,
    replicates_for,
    visible_effect,
)
from study.plan.loading import available, load_study
from study.plan.trials import plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder


def cells(names: str, *rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def problems(study: str, scale: str, *overrides: str) -> list[str]:
    config = load_study(study, scale, overrides)
    return find_problems(config, plan_trials(config))


def test_in_a_full_cross_everything_is_told_apart() -> None:
    full = cells("abc", *product((1, 2), (1, 2, 3), (True, None)))
    assert (find_aliases(full), find_confounded(full), find_uncrossed(full)) == ([], [], [])


def test_factors_that_change_together_are_aliases() -> None:
    design = cells("abc", (1, 8, "x"), (1, 8, "y"), (2, 16, "x"), (2, 16, "y"))
    assert find_aliases(design) == [("a", "b")]
    assert find_confounded(design) == ["a", "b"]
    assert find_uncrossed(design) == [("a", "b")]


def test_a_factor_that_the_levels_of_another_imply_is_confounded_without_an_alias() -> None:
    nested = cells("ab", (1, "x"), (1, "y"), (2, "z"))  # b tells a
    assert find_aliases(nested) == []
    assert "a" in find_confounded(nested)


def test_blocks_tell_main_effects_apart_and_leave_crossings_out() -> None:
    config = load_study("impacts", "laptop")
    levels = [trial.levels for trial in plan_trials(config)]
    assert (find_aliases(levels), find_confounded(levels)) == ([], [])
    assert ("depth", "solver") in find_uncrossed(levels)
    assert not any("batch_size" in pair for pair in find_uncrossed(levels))


def test_with_fixed_chunks_the_gradient_batch_moves_with_b_and_the_line_says_how_to_hold_it() -> None:
    (line,) = [line for line in problems("depth_vs_batch", "laptop") if line.startswith("batch_size")]
    assert "gradient_batch (16, 128)" in line
    assert "--set fixed_gradient_batch=128" in line
    held = problems("depth_vs_batch", "laptop", "fixed_gradient_batch=128")
    assert not [line for line in held if line.startswith("batch_size")]


def test_fields_that_go_with_a_level_are_named() -> None:
    config = load_study("impacts", "laptop")
    moving = find_moving(config, plan_trials(config))
    assert moving["solver"].keys() == {"learning_rate", "scaled learning rate"}
    assert moving["solver"]["learning_rate"] == [1.2, 0.1, 0.01]
    assert "depth" not in moving
    assert any(line.startswith("setting stands for several fields") for line in problems("tasks", "laptop"))


@pytest.mark.parametrize(("replicates", "said"), [(1, "no interval"), (2, "none of ratios"), (3, "")])
def test_few_replicates_are_warned_of(replicates: int, said: str) -> None:
    lines = [line for line in problems("distinct", "laptop", f"replicates={replicates}") if "--set replicates" in line]
    assert [said in line for line in lines] == [True] * bool(said)


@pytest.mark.parametrize("scale", ["smoke", "laptop", "workstation"])
def test_every_study_has_a_design_without_aliases_and_one_line_a_finding(scale: str, tmp_path: Path) -> None:
    for name in available("studies"):
        config = load_study(name, scale)
        if config.search is None:
            trials = plan_trials(config)
            lines = [*find_problems(config, trials), *describe_design(config, trials, StudyFolder(tmp_path))]
            assert lines
            assert not [line for line in lines if "told apart" in line or "\n" in line]


# ------------------------------------------------------------------------------------------------------- power


def test_the_power_is_the_share_of_t_tests_that_see_the_effect() -> None:
    draws = np.random.default_rng(7).normal(0.8, 1.0, (20_000, 9))
    seen = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    assert power_of(9, 0.8, 0.95) == pytest.approx(seen.mean(), abs=0.01)


def test_without_an_effect_the_power_is_that_of_chance() -> None:
    assert power_of(5, 0.0, 0.95) == pytest.approx(0.05)


@pytest.mark.parametrize(("effect", "needed"), [(1.0, 10), (0.5, 34), (0.2, 199)])  # of G*Power, paired, two-sided
def test_replicates_are_those_of_the_tables(effect: float, needed: int) -> None:
    assert replicates_for(effect, 0.95) == needed
    assert visible_effect(needed, 0.95) <= effect < visible_effect(needed - 1, 0.95)


def test_more_than_a_thousand_replicates_are_not_promised() -> None:
    assert replicates_for(0.01, 0.95) is None


def test_the_spread_of_the_last_report_says_what_the_margin_takes(tmp_path: Path) -> None:
    config, folder = load_study("depth_vs_batch", "laptop"), StudyFolder(tmp_path)
    gains = [0.01, 0.02, 0.03]  # a spread of 0.01: the margin of 0.005 is half of it
    difference = {"measure": "val_accuracy", "comparison": "sn - bn", "per_replicate": gains, "n": 3}
    ratio = {"measure": "effect", "comparison": "depth", "interval": [1.2, 1.9], "n": 4}
    questions = {"useful": {"effects": [difference]}, "impacts": {"effects": [ratio]}}
    write_json(folder.report / "answers.json", {"questions": questions})
    said = "\n".join(describe_design(config, plan_trials(config), folder))
    assert "the last report is 0.01 (sn - bn): to see 0.005 takes 34 replicates" in said
    spread = np.log(1.9 / 1.2) / 2 * 2 / stats.t.ppf(0.975, 3)
    assert f"depth in the last report: {replicates_for(np.log(1.5) / spread, 0.95)}" in said


def test_a_report_of_another_kind_is_none(tmp_path: Path) -> None:
    config, folder = load_study("depth_vs_batch", "laptop"), StudyFolder(tmp_path)
    write_json(folder.report / "answers.json", {"questions": []})
    assert "no spread is known" in "\n".join(describe_design(config, plan_trials(config), folder))


def test_a_study_that_does_not_fit_on_its_disk_is_told(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "not" / "there")
    free, warning = check_disk(1e18, folder)
    assert f"the disk of {tmp_path} has" in warning
    assert "needs about 1e+06 TB" in warning
    assert check_disk(free / 2, folder)[1] == ""
