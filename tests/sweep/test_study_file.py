"""study.yaml: the plan of the analysis is recorded by the first run, and later runs add amendments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from study.analysis.records import load_study_records
from study.bench.synthetic_records import Truth, write_trial
from study.config.errors import UserError
from study.plan.analysis_plan import PlanRecord, resolve_analysis_plan
from study.plan.loading import read_study_file
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from study.sweep.study_file import check_folder, write_study
from tests.analysis.conftest import build_study


def _study(replicates: int = 2) -> Any:
    return build_study(replicates=replicates, norm=["sn", "bn"], batch_size=[2, 16])


def _plan(folder: StudyFolder) -> PlanRecord:
    plan = read_study_file(folder.config).plan
    assert plan is not None
    return plan


def _train(folder: StudyFolder, study: Any) -> None:
    for trial in plan_trials(study):
        if not folder.trial(trial.trial_id, trial.replicate).path.exists():
            write_trial(folder, trial, Truth())


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "planted")


def test_the_first_run_records_the_plan(folder: StudyFolder) -> None:
    write_study(_study(), folder, {})
    plan = _plan(folder)
    assert plan.plan == resolve_analysis_plan(_study())
    assert plan.is_before_data
    assert not plan.amendments


def test_the_same_plan_adds_nothing(folder: StudyFolder) -> None:
    write_study(_study(), folder, {"command": "first"})
    before = _plan(folder)
    _train(folder, _study())
    write_study(_study(), folder, {"command": "second"})
    assert _plan(folder) == before
    assert load_study_records(folder).plan_changes.is_as_planned


def test_a_changed_plan_is_amended_once_and_the_first_plan_stays(folder: StudyFolder) -> None:
    write_study(_study(2), folder, {})
    first = _plan(folder)
    _train(folder, _study(2))
    for _ in range(2):
        write_study(_study(3), folder, {})
    plan = _plan(folder)
    assert (plan.hash, plan.created, plan.plan) == (first.hash, first.created, first.plan)
    [amendment] = plan.amendments
    assert (dict(amendment.changes), amendment.results) == ({"replicates": (2, 3)}, 8)


def test_every_change_of_the_runs_after_results_is_a_look_and_halves_the_error(folder: StudyFolder) -> None:
    write_study(_study(2), folder, {})
    write_study(_study(3), folder, {})  # before there are results
    _train(folder, _study(3))
    assert load_study_records(folder).look == 1
    confidences = []
    for replicates in (4, 5):
        write_study(_study(replicates), folder, {})
        _train(folder, _study(replicates))
        confidences.append(load_study_records(folder).confidence)
    assert confidences == pytest.approx([0.975, 0.9875])
    write_study(_study(4), folder, {})  # whoever goes back to fewer has looked, too
    assert load_study_records(folder).look == 4


def test_all_looks_together_stay_below_twice_the_error_of_the_first(folder: StudyFolder) -> None:
    write_study(_study(2), folder, {})
    _train(folder, _study(2))
    spent = (1 - load_study_records(folder).confidence) / 2
    for replicates in range(3, 9):
        write_study(_study(replicates), folder, {})
        spent += (1 - load_study_records(folder).confidence) / 2
    assert spent < 0.05


def test_a_study_of_an_older_version_works_without_a_plan(folder: StudyFolder) -> None:
    write_study(_study(2), folder, {})
    content = yaml.safe_load(folder.config.read_text())
    del content["analysis_plan"], content["amendments"]
    folder.config.write_text(yaml.safe_dump(content))
    _train(folder, _study(2))
    records = load_study_records(folder)
    assert (records.plan, records.look, records.confidence) == (None, 1, 0.95)
    assert not records.plan_changes.is_as_planned
    write_study(_study(3), folder, {})  # the plan is recorded now, after the data, with what changes
    plan = _plan(folder)
    assert (plan.is_before_data, plan.results, plan.plan["replicates"]) == (False, 8, 2)
    assert load_study_records(folder).look == 2


def test_an_edit_of_the_file_is_an_unrecorded_change(folder: StudyFolder) -> None:
    write_study(_study(2), folder, {})
    _train(folder, _study(2))
    content = yaml.safe_load(folder.config.read_text())
    content["study"]["analysis"]["metric"] = "test_accuracy"
    folder.config.write_text(yaml.safe_dump(content))
    changes = load_study_records(folder).plan_changes
    assert dict(changes.unrecorded) == {"metric": ("val_accuracy", "test_accuracy")}
    assert not changes.is_as_planned


@pytest.mark.bad_input
def test_a_damaged_plan_is_one_line_for_reports_and_runs(folder: StudyFolder) -> None:
    write_study(_study(), folder, {})
    content = yaml.safe_load(folder.config.read_text())
    content["analysis_plan"]["plan"]["confidence"] = 0.5
    folder.config.write_text(yaml.safe_dump(content))
    for read in (lambda: load_study_records(folder), lambda: check_folder(_study(), folder)):
        with pytest.raises(UserError, match=r"analysis_plan\.hash"):
            read()


def test_every_folder_has_an_id_of_its_own_that_stays(tmp_path: Path) -> None:
    here, there = StudyFolder(tmp_path / "here"), StudyFolder(tmp_path / "there")
    first = write_study(_study(), here, {"command": "first"})
    assert len(first) == 6
    assert write_study(_study(), here, {"command": "second"}) == first == read_study_file(here.config).study_id
    assert write_study(_study(), there, {}) != first


def test_a_folder_of_an_older_version_gets_no_id(folder: StudyFolder) -> None:
    write_study(_study(), folder, {})
    content = yaml.safe_load(folder.config.read_text())
    del content["provenance"]["id"]
    folder.config.write_text(yaml.safe_dump(content))
    assert write_study(_study(), folder, {}) == read_study_file(folder.config).study_id == ""


@pytest.mark.parametrize("flags", ["--out elsewhere", "--out=elsewhere", ""])
def test_a_moved_folder_is_refused_with_the_command_for_its_new_place(folder: StudyFolder, flags: str) -> None:
    write_study(_study(), folder, {"command": f"run-study --study planted {flags} --set 'norm=[sn, bn]'"})
    with pytest.raises(UserError) as error:
        check_folder(build_study(norm=["sn", "bn"], depth=[8, 14]), folder)
    last = str(error.value).partition("last run: ")[2]
    assert last == f"run-study --study planted --set 'norm=[sn, bn]' --out {folder.path.parent}"
