"""A finished study that tests of the faults copy and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest

from study.bench.faults.harness import OVERRIDES, STUDY
from study.bench.synthetic_records import Truth, write_study
from study.plan.loading import load_study
from study.record.layout import StudyFolder, TrialFolder


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """With records, Optuna storage and report. Read only."""
    folder = StudyFolder(tmp_path_factory.mktemp("finished") / STUDY)
    write_study(folder, load_study("depth_vs_batch", "smoke", OVERRIDES), Truth())
    add_to_optuna(folder, *(record.key for record in folder.trials()))
    folder.report.mkdir()
    (folder.report / "answers.json").write_text("{}")
    return folder


def copy_study(folder: StudyFolder, target: Path) -> StudyFolder:
    return StudyFolder(shutil.copytree(folder.path, target / STUDY))


def add_to_optuna(folder: StudyFolder, *keys: str) -> None:
    storage = f"sqlite:///{folder.storage}"
    study = optuna.create_study(study_name=folder.path.name, storage=storage, load_if_exists=True)
    study.add_trials([optuna.create_trial(value=1.0, user_attrs={"key": key}) for key in keys])


def first_trial(folder: StudyFolder) -> TrialFolder:
    """The first trial with switch weights."""
    return next(record for record in folder.trials() if record.trial_id.startswith("sn-"))
