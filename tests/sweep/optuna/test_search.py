"""The Optuna study of a search: suggestions that no interruption changes, values, pruning."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from study.cli.study_observer import StudyObserver
from study.config.errors import UserError
from study.config.schema import Range
from study.record.contents import SCHEMA_VERSION
from study.record.io import write_bytes
from study.record.layout import StudyFolder
from study.sweep.optuna.base import WORST
from study.sweep.optuna.connection import open_trial_source
from tests.sweep.optuna.searches import (
    play,
    result,
    search,
    search_few_cells,
    stored_trials,
    undisturbed_suggestions,
)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def stored(folder: StudyFolder) -> list[optuna.trial.FrozenTrial]:
    return stored_trials(search(), f"sqlite:///{folder.storage}")


@pytest.mark.parametrize(("sampler", "n_trials"), [("tpe", 14), ("random", 6)])
def test_a_search_interrupted_in_every_round_suggests_the_same(
    folder: StudyFolder, sampler: str, n_trials: int
) -> None:
    study = search(sampler, n_trials)
    for stop in range(n_trials // 2):
        play(open_trial_source(study, folder, None), stop)
    assert play(open_trial_source(study, folder, None)) == undisturbed_suggestions(sampler, n_trials)


def test_an_interrupted_suggestion_is_completed(folder: StudyFolder) -> None:
    study = search()
    play(open_trial_source(study, folder, None), stop=5)
    half = optuna.load_study(study_name=study.name, storage=f"sqlite:///{folder.storage}")
    half.ask()  # a trial without any of its parameters
    assert play(open_trial_source(study, folder, None)) == undisturbed_suggestions()


def test_a_repeated_suggestion_is_trained_once_and_counted_once(folder: StudyFolder) -> None:
    study = search_few_cells()
    for _ in range(2):  # the same command again
        source = open_trial_source(study, folder, None)
        assert source.total == 8
        keys = play(source)
        assert len(keys) == len(set(keys)) == source.total == 2
        assert source.best().endswith("; 6 suggestions of the search repeat an earlier cell")
        assert folder.read_suggestions() == (8, 6)
    observer = StudyObserver(folder, study)
    observer.read_records()
    assert (observer.total, observer.repeated) == (2, 6)
    assert len(stored_trials(study, f"sqlite:///{folder.storage}")) == 8


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"suggested": "x", "repeated": 1}', '{"suggested": 2, "repeated": 9}']
)
def test_a_damaged_count_of_suggestions_counts_none_as_repeated(folder: StudyFolder, content: str) -> None:
    write_bytes(folder.suggestions, content.encode())
    assert folder.read_suggestions() == (0, 0)


def test_a_search_over_lists_resumes_with_the_levels_of_the_plan(folder: StudyFolder) -> None:
    study = search_few_cells()
    play(open_trial_source(study, folder, None), stop=1)
    source = open_trial_source(study, folder, None)
    trials = [trial for trials in source.rounds() for trial in trials]
    assert {trial.levels["decay_milestones"] for trial in trials} == {(0.5,), (0.3, 0.6)}
    assert all(trial.config.decay_milestones == trial.levels["decay_milestones"] for trial in trials)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_search_without_any_value_says_so(folder: StudyFolder, direction: str) -> None:
    study = search_few_cells(**{"search.direction": direction})
    source = open_trial_source(study, folder, None)
    for trials in source.rounds():
        for trial in trials:
            source.record_result(trial, result(None, "diverged"))
    assert source.best().startswith("best val_accuracy: no trial has a value: 2 diverged")


def test_a_cell_with_a_replicate_that_diverged_is_never_the_best(folder: StudyFolder) -> None:
    source = open_trial_source(search_few_cells(replicates=2), folder, None)
    for trials in source.rounds():
        for trial in trials:
            diverged = trial.replicate == 1 and trial.config.decay_milestones == (0.5,)
            source.record_result(trial, result(None, "diverged") if diverged else result(0.5))
    assert source.best().startswith("best val_accuracy: 0.5 at ")
    assert "decay_milestones=[0.3, 0.6]" in source.best()


def test_a_search_finds_better_cells_than_chance(folder: StudyFolder) -> None:
    play(open_trial_source(search(n_trials=30), folder, None))
    values = [trial.value for trial in stored(folder)]
    assert len(values) == 30
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10


def test_a_cell_of_several_replicates_is_one_optuna_trial(folder: StudyFolder) -> None:
    source = open_trial_source(search(n_trials=1).model_copy(update={"replicates": 2}), folder, None)
    for trials in source.rounds():
        for trial, weight in zip(trials, (0.2, 0.4), strict=True):
            source.record_result(trial, {**result(0.5), "metrics": {"val_accuracy": 0.5, "switch/mean/bn": weight}})
    (cell,) = stored(folder)
    assert cell.user_attrs["replicates"] == [0, 1]
    assert cell.user_attrs["switch_weights"]["switch/mean/bn"] == pytest.approx(0.3)
    assert cell.user_attrs["record"] == str(folder.path / "trials" / cell.user_attrs["trial_id"])


def test_a_diverged_cell_has_the_worst_value_and_one_without_result_fails(folder: StudyFolder) -> None:
    source = open_trial_source(search(n_trials=2), folder, None)
    for first, _ in source.rounds():
        source.record_result(first, result(None, "diverged"))
    diverged, failed = stored(folder)
    assert diverged.value == WORST["maximize"]
    assert failed.state == optuna.trial.TrialState.FAIL


def test_the_pruner_compares_only_with_earlier_rounds(folder: StudyFolder) -> None:
    source = open_trial_source(search(n_trials=12, pruner="median"), folder, None)
    pruned = []
    for number, trials in enumerate(source.rounds()):
        for trial in trials:
            base = 0.9 if number < 4 else 0.1
            values = {epoch: base + epoch / 100 for epoch in range(1, 4)}
            rows = "".join(
                f'{{"schema": {SCHEMA_VERSION}, "epoch": {epoch}, "name": "val_accuracy", "value": {value}}}\n'
                for epoch, value in values.items()
            )
            write_bytes(folder.trial(trial.trial_id, trial.replicate).metrics, rows.encode())
            pruned.append(source.find_prune_epoch(trial))
            source.record_result(trial, result(values[3]))
    assert pruned == [None] * 8 + [1] * 4
    assert [trial.state.name for trial in stored(folder)] == ["COMPLETE"] * 8 + ["PRUNED"] * 4


def test_a_search_of_whole_numbers_by_an_older_version_is_not_continued(tmp_path: Path) -> None:
    study, folder = search(n_trials=2), StudyFolder(tmp_path)
    whole = Range(low=1, high=2)  # which older versions did not turn into real numbers
    older = study.model_copy(update={"factors": {**study.factors, "learning_rate": whole}})
    play(open_trial_source(older, folder, None))
    with pytest.raises(UserError, match="an older version has searched whole numbers of learning_rate; choose another"):
        open_trial_source(study, folder, None)
