"""Optuna's side: the grid's mirror, and a search that any interruption leaves the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial
from study.record.io import write_bytes
from study.record.layout import SCHEMA, StudyFolder
from study.sweep.optuna.base import WORST, TrialSource
from study.sweep.optuna.bulk_insert import add_trials, read_attribute, remove_trials
from study.sweep.optuna.connection import open_trial_source


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def result(value: float | None, status: str = "done") -> dict[str, Any]:
    return {"status": status, "metrics": {"val_accuracy": value, "switch/mean/bn": 0.25}}


def stored(study: StudyConfig, folder: StudyFolder) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study.name, storage=f"sqlite:///{folder.storage}").trials


def test_a_grid_is_mirrored_with_levels_status_and_switch_weights(folder: StudyFolder) -> None:
    study = load_study("depth_vs_batch", "smoke")
    book = open_trial_source(study, folder, None)
    (trials,) = book.rounds()
    assert len(trials) == book.total == 4
    book.record_result(trials[0], result(0.9))
    book.record_result(trials[1], result(None, "diverged"))
    book.flush()
    first, second = stored(study, folder)
    assert first.params == trials[0].levels
    assert first.value == 0.9
    assert first.user_attrs["switch_weights"] == {"switch/mean/bn": 0.25}
    assert (second.value, second.user_attrs["status"]) == (WORST["maximize"], "diverged")


def test_telling_again_changes_nothing(folder: StudyFolder) -> None:
    study = load_study("depth_vs_batch", "smoke")
    for _ in range(2):
        book = open_trial_source(study, folder, None)
        (trials,) = book.rounds()
        for _ in range(2):
            book.record_result(trials[0], result(0.9))
            book.flush()
    assert len(stored(study, folder)) == 1


def test_a_grid_that_gains_levels_is_mirrored_anew(folder: StudyFolder) -> None:
    narrow = load_study("depth_vs_batch", "smoke")
    book = open_trial_source(narrow, folder, None)
    for trials in book.rounds():
        book.record_result(trials[0], result(0.9))
    wide = load_study("depth_vs_batch", "smoke", ["depth=[8, 14]"])
    book = open_trial_source(wide, folder, None)
    (trials,) = book.rounds()
    for trial in trials:
        book.record_result(trial, result(0.5))
    book.flush()
    assert len(stored(wide, folder)) == 8


def search(sampler: str = "tpe", **settings: object) -> StudyConfig:
    overrides = [f"search.{name}={value}" for name, value in {"sampler": sampler, "n_trials": 14, **settings}.items()]
    space = ["factors.learning_rate={low: 0.01, high: 1.0, log: true}", "batch_size=[2, 4, 8, 16]", "norm=sn"]
    return load_study("depth_vs_batch", "smoke", [*overrides, "search.round_size=2", *space])


def score(trial: PlannedTrial) -> float:
    return -abs(trial.config.learning_rate - 0.3) - trial.config.batch_size / 100


def play(book: TrialSource, rounds: int | None = None) -> list[str]:
    """Answers a book's rounds by a known function; stops inside round `rounds`, as a kill would."""
    seen = []
    for number, trials in enumerate(book.rounds()):
        seen += [trial.key for trial in trials]
        if number == rounds:
            return seen
        for trial in reversed(trials):
            book.record_result(trial, result(score(trial)))
    return seen


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_interrupted_at_any_round_suggests_the_same(tmp_path: Path, sampler: str) -> None:
    study = search(sampler)
    whole = play(open_trial_source(study, StudyFolder(tmp_path / "whole"), f"sqlite:///{tmp_path}/whole.db"))
    for stop in range(6):
        url = f"sqlite:///{tmp_path}/stopped{stop}.db"
        stopped = StudyFolder(tmp_path / f"stopped{stop}")
        play(open_trial_source(study, stopped, url), stop)
        assert play(open_trial_source(study, stopped, url)) == whole


def test_a_suggestion_killed_half_way_is_taken_up_again(folder: StudyFolder) -> None:
    study = search()
    whole = play(open_trial_source(study, StudyFolder(folder.path / "other"), f"sqlite:///{folder.path}/other.db"))
    book = open_trial_source(study, folder, None)
    half = optuna.load_study(study_name=study.name, storage=f"sqlite:///{folder.storage}")
    half.ask()  # a trial without any of its parameters
    assert play(book) == whole


def test_a_cell_of_several_replicates_shows_them_together(folder: StudyFolder) -> None:
    study = search(n_trials=1).model_copy(update={"replicates": 2})
    book = open_trial_source(study, folder, None)
    for trials in book.rounds():
        for trial, weight in zip(trials, (0.2, 0.4), strict=True):
            book.record_result(trial, {**result(0.5), "metrics": {"val_accuracy": 0.5, "switch/mean/bn": weight}})
    (cell,) = stored(study, folder)
    assert cell.user_attrs["replicates"] == [0, 1]
    assert cell.user_attrs["switch_weights"]["switch/mean/bn"] == pytest.approx(0.3)
    assert cell.user_attrs["record"] == str(folder.path / "trials" / cell.user_attrs["trial_id"])


def test_mirrored_trials_are_as_optuna_itself_would_add_them(tmp_path: Path) -> None:
    storages = [optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/{name}.db") for name in ("ours", "optunas")]
    ours, optunas = [optuna.create_study(storage=storage, direction="maximize") for storage in storages]
    space = {"norm": CategoricalDistribution(["sn", "bn"]), "depth": CategoricalDistribution([8, 14]),
             "learning_rate": FloatDistribution(0.01, 1.0, log=True)}  # fmt: skip
    trials = [
        create_trial(params={"norm": norm, "depth": depth, "learning_rate": 0.1}, distributions=space,
                     value=0.1 * depth, user_attrs={"key": f"{norm}{depth}", "switch_weights": {"bn": 0.5}})
        for norm in ("sn", "bn") for depth in (8, 14)
    ]  # fmt: skip
    for some in (trials[:1], trials[1:]):
        add_trials(ours, storages[0], some)
        optunas.add_trials(some)
    assert ours.trials == optunas.trials
    assert read_attribute(ours, storages[0], "key") == {"sn8", "sn14", "bn8", "bn14"}
    remove_trials(ours, storages[0])
    assert optuna.load_study(study_name=ours.study_name, storage=storages[0]).trials == []


def test_a_search_finds_what_is_better_than_chance(folder: StudyFolder) -> None:
    study = search(n_trials=30)
    play(open_trial_source(study, folder, None))
    values = [trial.value for trial in stored(study, folder)]
    assert len(values) == 30
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10


def test_a_diverged_cell_counts_as_worst_and_a_failed_one_fails(folder: StudyFolder) -> None:
    study = search(n_trials=2)
    book = open_trial_source(study, folder, None)
    for first, _ in book.rounds():
        book.record_result(first, result(None, "diverged"))
    diverged, failed = stored(study, folder)
    assert diverged.value == WORST["maximize"]
    assert failed.state == optuna.trial.TrialState.FAIL


def test_the_pruner_compares_with_earlier_rounds_alone(folder: StudyFolder) -> None:
    study = search(n_trials=12, pruner="median")
    book = open_trial_source(study, folder, None)
    pruned = []
    for number, trials in enumerate(book.rounds()):
        for trial in trials:
            good = number < 4
            values = {epoch: (0.9 if good else 0.1) + epoch / 100 for epoch in range(1, 4)}
            rows = "".join(
                f'{{"schema": {SCHEMA}, "epoch": {epoch}, "name": "val_accuracy", "value": {value}}}\n'
                for epoch, value in values.items()
            )
            write_bytes(folder.trial(trial.trial_id, trial.replicate).metrics, rows.encode())
            pruned.append(book.find_prune_epoch(trial))
            book.record_result(trial, result(values[3]))
    assert pruned[:8] == [None] * 8
    assert pruned[8:] == [1] * 4
    states = [trial.state.name for trial in stored(study, folder)]
    assert states == ["COMPLETE"] * 8 + ["PRUNED"] * 4
