"""Replicates that repeat the numbers of another one are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from study.analysis.records import load_study_records
from study.analysis.trial_files import METRICS
from study.bench.synthetic_records import SyntheticStudy
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder
from tests.analysis.conftest import Truth, build_study, write_study


@pytest.fixture
def study() -> StudyConfig:
    return build_study(replicates=3, norm=["sn", "bn"], batch_size=[2, 16])


def _copy_replicate(folder: StudyFolder, cell: str, source: int, target: int) -> None:
    shutil.rmtree(folder.trial(cell, target).path)
    shutil.copytree(folder.trial(cell, source).path, folder.trial(cell, target).path)
    result = folder.trial(cell, target).result
    write_json(result, {**json.loads(result.read_text()), "replicate": target})


def test_the_folder_of_another_trial_is_damaged(tmp_path: Path, study: StudyConfig) -> None:
    folder, (first, other) = write_study(tmp_path, study), plan_trials(study)[:2]
    shutil.rmtree(folder.trial(other.trial_id, other.replicate).path)
    shutil.copytree(
        folder.trial(first.trial_id, first.replicate).path, folder.trial(other.trial_id, other.replicate).path
    )
    records = load_study_records(folder)
    [refused] = records.trials[records.trials["state"].ne("done")].to_dict("records")
    assert (refused["key"], refused["state"]) == (other.key, "damaged")
    assert refused["reason"] == f"result.json: is that of {first.key}"


@pytest.mark.parametrize("cell", range(4), ids=["sn-2", "sn-16", "bn-2", "bn-16"])
def test_a_copied_replicate_is_no_result(tmp_path: Path, study: StudyConfig, cell: int) -> None:
    folder, trial_id = write_study(tmp_path, study), plan_trials(study)[cell].trial_id
    _copy_replicate(folder, trial_id, 0, 2)
    records = load_study_records(folder)
    key = f"{trial_id}-r2"
    [refused] = records.trials[records.trials["state"].ne("done")].to_dict("records")
    assert (refused["key"], refused["state"]) == (key, "repeated")
    assert refused["reason"] == "the same numbers as replicate 0, so not an independent replicate"
    assert all(np.isnan(refused[name]) for name in METRICS)
    for frame in (records.switch, records.switch_epochs, records.curves, records.heads):
        assert key not in set(frame["key"])
    expected = plan_trials(study)[cell].config.norm == "sn"
    weights = records.weights.to_pandas()
    assert set(weights.loc[weights["trial_id"].eq(trial_id), "replicate"]) == ({0, 1} if expected else set())
    assert not records.is_interim


def test_independent_replicates_are_results(tmp_path: Path, study: StudyConfig) -> None:
    truth = Truth(logit_noise=0.0)  # the weights of all replicates are the same, and their losses are not
    assert set(load_study_records(write_study(tmp_path, study, truth)).trials["state"]) == {"done"}


def test_equal_curves_with_other_weights_are_results(tmp_path: Path, study: StudyConfig) -> None:
    truth = Truth(accuracy_noise=0.0, shared={})
    records = load_study_records(write_study(tmp_path, study, truth))
    states = records.trials.groupby("norm")["state"].value_counts().to_dict()
    # Layers of bn choose nothing, so its replicates have nothing in which they differ.
    assert states == {("sn", "done"): 6, ("bn", "done"): 2, ("bn", "repeated"): 4}


def test_trials_without_losses_are_no_duplicates(tmp_path: Path, study: StudyConfig) -> None:
    folder = write_study(tmp_path, study, Truth(logit_noise=0.0), diverged=lambda trial: True)
    for trial in folder.trials():
        result = json.loads(trial.result.read_text())
        trial.metrics.write_text("")
        result["files"].pop(trial.metrics.name, None)
        trial.result.write_text(json.dumps(result))
    assert "repeated" not in set(load_study_records(folder).trials["state"])


def test_equal_numbers_of_different_cells_are_results(tmp_path: Path) -> None:
    study = build_study(replicates=1, norm=["bn", "gn"], batch_size=[2, 16])
    records = load_study_records(write_study(tmp_path, study, Truth(accuracy_noise=0.0, shared={})))
    assert set(records.trials["state"]) == {"done"}


def test_records_in_memory_refuse_the_same_replicates(tmp_path: Path, study: StudyConfig) -> None:
    truth = Truth(accuracy_noise=0.0, shared={}, logit_noise=0.0)
    disk = load_study_records(write_study(tmp_path / study.name, study, truth))
    memory = SyntheticStudy(study).draw_records(truth)
    assert memory.trials["state"].tolist() == disk.trials["state"].tolist()
    assert memory.trials["reason"].tolist() == disk.trials["reason"].tolist()
    assert memory.curves.equals(disk.curves)
    assert memory.weights.num_rows == disk.weights.num_rows
    assert set(memory.switch["key"]) == set(disk.switch["key"])
