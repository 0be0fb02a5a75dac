"""Design diagnostics: on small known designs, and on the studies of the package."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from study.plan.design_diagnostics import (
    describe_balance,
    find_aliases,
    find_co_varying,
    find_confounded,
    find_problems,
    find_uncrossed,
)
from study.plan.loading import list_configs, load_study
from study.plan.trials import plan_trials


def cells(names: str, *rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def problems(name: str, scale: str, *overrides: str) -> list[str]:
    study = load_study(name, scale, overrides)
    return find_problems(study, plan_trials(study))


def test_a_full_cross_has_no_aliases_and_nothing_confounded() -> None:
    full = cells("abc", *product((1, 2), (1, 2, 3), (True, None)))
    assert (find_aliases(full), find_confounded(full), find_uncrossed(full)) == ([], [], [])


def test_factors_that_change_together_are_aliases() -> None:
    design = cells("abc", (1, 8, "x"), (1, 8, "y"), (2, 16, "x"), (2, 16, "y"))
    assert find_aliases(design) == [("a", "b")]
    assert find_confounded(design) == ["a", "b"]
    assert find_uncrossed(design) == [("a", "b")]


def test_a_factor_that_the_levels_of_another_imply_is_confounded_without_an_alias() -> None:
    nested = cells("ab", (1, "x"), (1, "y"), (2, "z"))  # b determines a
    assert find_aliases(nested) == []
    assert "a" in find_confounded(nested)


def test_a_large_design_is_diagnosed_in_seconds_or_says_what_is_not_checked() -> None:
    crossed = cells("abc", *product(range(300), range(10), range(3)))
    assert find_confounded(crossed) == find_confounded(crossed[1:]) == []
    nested = [{**cell, "c": cell["a"] // 3} for cell in crossed]
    assert find_confounded(nested) == ["a", "c"]
    many = [f"factors.epochs={[*range(1, 601)]}", f"factors.gn_groups={[*range(1, 601)]}"]
    blocks = "blocks=[[norm, depth, batch_size, initialization], [epochs], [gn_groups]]"
    lines = problems("depth_vs_batch", "smoke", *many, blocks)
    assert "more than 1000 levels: whether effects can be told apart is not checked" in lines


def test_a_warm_up_that_takes_the_whole_training_is_named() -> None:
    line = "the warm-up takes the whole training in 4 cells: warmup_epochs is not below epochs"
    assert line in problems("depth_vs_batch", "smoke", "factors.epochs=[2, 3]", "warmup_epochs=2")
    assert not any("warm-up" in each for each in problems("depth_vs_batch", "smoke"))


def test_blocks_determine_main_effects_and_leave_out_interactions() -> None:
    levels = [trial.levels for trial in plan_trials(load_study("impacts", "laptop"))]
    assert (find_aliases(levels), find_confounded(levels)) == ([], [])
    assert ("depth", "solver") in find_uncrossed(levels)
    assert not any("batch_size" in pair for pair in find_uncrossed(levels))


def test_at_constant_chunks_the_gradient_batch_changes_with_b_and_the_line_says_how_to_prevent_it() -> None:
    lines = problems("depth_vs_batch", "laptop", "fixed_gradient_batch=null")
    (line,) = [line for line in lines if line.startswith("batch_size")]
    assert "gradient_batch (16, 128)" in line
    assert "--set fixed_gradient_batch=128" in line
    fixed = problems("depth_vs_batch", "laptop", "fixed_gradient_batch=128")
    assert not [line for line in fixed if line.startswith("batch_size")]


def test_fields_that_joint_adds_to_a_level_are_named() -> None:
    study = load_study("impacts", "laptop")
    co_varying = find_co_varying(study, plan_trials(study))
    assert co_varying["solver"].keys() == {"learning_rate", "scaled learning rate"}
    assert co_varying["solver"]["learning_rate"] == [
        study.joint["solver"].get(solver, {}).get("learning_rate", study.base.learning_rate)
        for solver in ("sgd", "adamw", "rmsprop")
    ]
    assert "depth" not in co_varying
    assert any(line.startswith("setting stands for several fields") for line in problems("tasks", "laptop"))


@pytest.mark.parametrize(("replicates", "part"), [(1, "no intervals,"), (2, "no intervals of displacements"), (3, "")])
def test_few_replicates_get_a_warning(replicates: int, part: str) -> None:
    lines = [line for line in problems("distinct", "laptop", f"replicates={replicates}") if "--set replicates" in line]
    assert [part in line for line in lines] == [True] * bool(part)


@pytest.mark.parametrize("scale", ["smoke", "laptop", "workstation"])
@pytest.mark.parametrize("name", list_configs("studies"))
def test_the_design_of_every_study_has_no_aliases(name: str, scale: str) -> None:
    study = load_study(name, scale)
    if study.search is None:
        trials = plan_trials(study)
        lines = [*find_problems(study, trials), *describe_balance(trials)]
        assert lines
        assert not [line for line in lines if "told apart" in line or "\n" in line]
