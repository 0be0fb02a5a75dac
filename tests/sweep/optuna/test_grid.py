"""The Optuna study of a grid: what is written of its results."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from study.plan.loading import load_study
from study.record.layout import StudyFolder
from study.sweep.optuna.base import WORST
from study.sweep.optuna.bulk_insert import add_trials, read_attribute, remove_trials
from study.sweep.optuna.connection import open_trial_source
from tests.sweep.optuna.searches import result, stored_trials


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def test_trials_are_written_once_with_levels_status_and_switch_weights(folder: StudyFolder) -> None:
    study = load_study("depth_vs_batch", "smoke")
    for _ in range(2):  # restarts of the driver
        source = open_trial_source(study, folder, None)
        (trials,) = source.rounds()
        assert len(trials) == source.total == 4
        for _ in range(2):
            source.record_result(trials[0], result(0.9))
            source.record_result(trials[1], result(None, "diverged"))
            source.flush()
    first, second = stored_trials(study, f"sqlite:///{folder.storage}")
    assert first.params == trials[0].levels
    assert first.value == 0.9
    assert first.user_attrs["switch_weights"] == {"switch/mean/bn": 0.25}
    assert (second.value, second.user_attrs["status"]) == (WORST["maximize"], "diverged")


def test_a_grid_that_gains_levels_is_written_again(folder: StudyFolder) -> None:
    source = open_trial_source(load_study("depth_vs_batch", "smoke"), folder, None)
    for trials in source.rounds():
        source.record_result(trials[0], result(0.9))
    wide = load_study("depth_vs_batch", "smoke", ["depth=[8, 14]"])
    source = open_trial_source(wide, folder, None)
    (trials,) = source.rounds()
    for trial in trials:
        source.record_result(trial, result(0.5))
    source.flush()
    assert len(stored_trials(wide, f"sqlite:///{folder.storage}")) == 8


def test_bulk_insert_writes_what_optuna_would(tmp_path: Path) -> None:
    storages = [optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/{name}.db") for name in ("ours", "optunas")]
    ours, optunas = [optuna.create_study(storage=storage, direction="maximize") for storage in storages]
    space = {"norm": CategoricalDistribution(["sn", "bn"]), "depth": CategoricalDistribution([8, 14]),
             "learning_rate": FloatDistribution(0.01, 1.0, log=True)}  # fmt: skip
    trials = [
        create_trial(params={"norm": norm, "depth": depth, "learning_rate": 0.1}, distributions=space,
                     value=0.1 * depth, user_attrs={"key": f"{norm}{depth}", "switch_weights": {"bn": 0.5}})
        for norm in ("sn", "bn") for depth in (8, 14)
    ]  # fmt: skip
    engine, study_id = storages[0].engine, storages[0].get_study_id_from_name(ours.study_name)
    for some in (trials[:1], trials[1:]):
        add_trials(engine, study_id, some)
        optunas.add_trials(some)
    assert ours.trials == optunas.trials
    assert read_attribute(engine, study_id, "key") == {"sn8", "sn14", "bn8", "bn14"}
    remove_trials(engine, study_id)
    assert optuna.load_study(study_name=ours.study_name, storage=storages[0]).trials == []


def test_list_valued_levels_are_stored_as_text_that_a_restart_recognizes(folder: StudyFolder) -> None:
    study = load_study(
        "depth_vs_batch", "smoke", ["factors.decay_milestones=[[0.5], [0.3, 0.6]]", "decay=step", "norm=sn"]
    )
    for _ in range(2):
        source = open_trial_source(study, folder, None)
        for trials in source.rounds():
            for trial in trials:
                source.record_result(trial, result(0.5))
    stored = stored_trials(study, f"sqlite:///{folder.storage}")
    assert sorted(trial.params["decay_milestones"] for trial in stored) == ["[0.3, 0.6]"] * 2 + ["[0.5]"] * 2
