"""The choice of a recipe: every norm has the same candidates, and no study uses the replicates that choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.bench.recipes import (
    BATCH_SIZES,
    CANDIDATES,
    FIRST_REPLICATE,
    NORMS,
    Run,
    choose_level,
    compute_scores,
    fit_simple_classifiers,
    plan_candidate,
)
from study.config.schema import TrialConfig
from study.plan.loading import list_configs, load_study
from tests.bench.conftest import RunBench

RECIPE = {"learning_rate": 0.5, "augmentation": "none", "zero_last_gamma": True}


def run(norm: str, batch_size: int, validation: float) -> Run:
    return Run(TrialConfig(norm=norm, batch_size=batch_size), validation, 0.0)


@pytest.mark.parametrize("scale", CANDIDATES)
def test_every_solver_has_as_many_learning_rates(scale: str) -> None:
    assert scale in list_configs("scales")
    candidates = CANDIDATES[scale]
    rates = [candidates.settings["learning_rate"], *candidates.learning_rates.values()]
    assert len({len(levels) for levels in rates}) == 1


@pytest.mark.parametrize("scale", CANDIDATES)
def test_the_recipe_of_a_scale_was_a_candidate(scale: str) -> None:
    base = load_study("depth_vs_batch", scale).base
    if scale != "smoke":
        assert all(getattr(base, name) in levels for name, levels in CANDIDATES[scale].settings.items())


def test_candidates_differ_from_the_base_in_their_settings_only_and_have_replicates_of_their_own() -> None:
    study = load_study("depth_vs_batch", "laptop")
    trials = plan_candidate(study, RECIPE, NORMS, [8], 2)
    assert {trial.config.norm for trial in trials} == set(NORMS)
    assert {trial.replicate for trial in trials} == {FIRST_REPLICATE, FIRST_REPLICATE + 1}
    assert study.replicates < FIRST_REPLICATE
    own = {*RECIPE, "norm", "depth", "batch_size", "chunks"}
    expected = study.base.model_dump(exclude=own)
    assert all(trial.config.model_dump(exclude=own) == expected for trial in trials)
    assert all(getattr(trial.config, name) == value for trial in trials for name, value in RECIPE.items())


def test_norms_without_batch_statistics_are_trained_at_one_b_only_if_the_gradient_batch_is_held() -> None:
    for setting, batch_sizes in (("16", BATCH_SIZES[:1]), ("null", BATCH_SIZES)):
        study = load_study("depth_vs_batch", "laptop", [f"fixed_gradient_batch={setting}"])
        trials = plan_candidate(study, RECIPE, ["gn", "sn"], [8], 1)
        by_norm = {norm: [t.config.batch_size for t in trials if t.config.norm == norm] for norm in ("gn", "sn")}
        assert by_norm == {"gn": [*batch_sizes], "sn": [*BATCH_SIZES]}


def test_norms_and_batch_sizes_have_the_same_weight_whatever_their_number_of_runs() -> None:
    runs = [run("sn", 2, 0.5), run("sn", 2, 0.7), run("sn", 16, 0.8), run("gn", 2, 0.9)]
    assert compute_scores(runs) == pytest.approx({"sn": 0.7, "gn": 0.9})


def test_the_first_of_levels_that_hardly_differ_is_chosen() -> None:
    assert choose_level([0.90, 0.93, 0.92]) == 1
    assert choose_level([0.926, 0.93, 0.92]) == 0
    assert choose_level([0.9, 0.9]) == 0


def test_simple_classifiers_learn_the_digits() -> None:
    study = load_study("depth_vs_batch", "laptop")
    accuracies = fit_simple_classifiers(study.base, 2, study)
    assert all(len(values) == 2 and 0.85 < min(values) <= max(values) < 1 for values in accuracies.values())


@pytest.mark.slow
def test_quick_mode_chooses_every_setting_and_the_rate_of_every_solver(
    run_bench: RunBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = run_bench("recipes")["rows"]
    assert [row["step"] for row in rows if row[""] == "chosen"] == ["recipe"] * 4 + ["solver"] * 2
    assert [row["candidate"] for row in rows[-2:]] == ["logistic regression", "3 nearest neighbours"]
