"""An unfinished study has numbers and no verdict; the head of a report says whether the analysis is as planned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.analysis.records import load_study_records
from study.analysis.report.interim_answers import compute_interim_answers, format_answer
from study.analysis.report.plan_text import build_plan_section, format_plan
from study.analysis.report.registry import answer_questions
from study.analysis.report.report import Report, write_report
from study.bench.synthetic_records import write_trial
from study.plan.loading import study_from_dict
from study.plan.trials import plan_trials
from study.record.io import write_json, write_yaml
from study.record.layout import StudyFolder
from study.sweep.study_file import write_study as record_study
from tests.analysis.conftest import GRID, Truth, build_study, write_study

TRUTH = Truth(accuracy=lambda trial: 0.95 if trial.config.norm == "sn" else 0.85)
STUDY = build_study(replicates=4, questions=("useful",), norm=["sn", "bn"], batch_size=[2, 16])


def _text(page: Path) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8").split("<script>")[1]).split())


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """All but one trial are done, and the difference is far above the margin."""
    last = plan_trials(STUDY)[-1]
    return write_study(tmp_path_factory.mktemp("unfinished"), STUDY, TRUTH, only=lambda trial: trial.key != last.key)


def test_an_unfinished_study_has_no_verdict(unfinished: StudyFolder) -> None:
    records = load_study_records(unfinished)
    answer = answer_questions(records)["useful"]
    assert records.is_interim
    assert (answer.interim, answer.verdict) == (True, "not enough evidence")
    assert answer.to_json()["interim"] is True
    assert answer.answer.startswith("Interim: 1 of 16 planned trials have not ended")
    assert "Yes" not in answer.answer
    assert answer.effects


def test_the_same_study_has_a_verdict_when_it_has_ended(tmp_path: Path) -> None:
    folder = write_study(tmp_path, STUDY, TRUTH)
    assert not load_study_records(folder).is_interim
    answer = answer_questions(load_study_records(folder))["useful"]
    assert (answer.interim, answer.verdict) == (False, "supported")
    assert "The rule that decided" in _text(write_report(folder))


@pytest.mark.parametrize("state", ["running", "planned"])
def test_a_trial_that_waits_is_interim_and_a_failed_one_is_not(tmp_path: Path, state: str) -> None:
    last = plan_trials(STUDY)[-1]
    folder = write_study(tmp_path, STUDY, TRUTH, only=lambda trial: trial.key != last.key)
    file = folder.trial(last.trial_id, last.replicate).state
    if state == "running":  # its process has ended, so it is stale
        write_json(file, {"state": "running", "attempt": 1})
    assert load_study_records(folder).is_interim
    write_json(file, {"state": "failed", "reason": "out of memory", "attempt": 3, "failures": 3})
    assert not load_study_records(folder).is_interim


def test_pages_and_terminals_say_interim(unfinished: StudyFolder) -> None:
    report = Report(unfinished)
    text = _text(report.write())
    assert "… interim" in text
    assert "answers are interim and carry no verdict" in text
    assert format_answer("useful", report.answers["useful"])[0] == "useful: interim"
    assert compute_interim_answers(unfinished)["questions"][0]["verdict"] == "interim"
    assert "The rule that decided" not in text
    assert re.search(r"1 missing: (sn|bn) not trained yet", text)


def test_lines_of_one_replicate_say_why_there_is_no_interval(tmp_path: Path) -> None:
    study = build_study(replicates=1, questions=("useful",), norm=["sn", "bn"])
    found = compute_interim_answers(write_study(tmp_path, study, TRUTH))["questions"][0]["effects"]
    assert found
    assert all(re.match(r"[+-][\d.]+ \(no interval: 1 replicate\) ", line) for line in found)


def test_evidence_against_is_named_so_and_keeps_its_word_in_json(tmp_path: Path) -> None:
    worse = Truth(accuracy=lambda trial: 0.8 if trial.config.norm == "sn" else 0.9)
    report = Report(write_study(tmp_path, STUDY, worse))
    assert "✕ evidence against" in _text(report.write())
    answers = json.loads((report.folder.report / "answers.json").read_text())
    assert answers["questions"]["useful"]["verdict"] == "not supported"
    assert format_answer("useful", report.answers["useful"])[0] == "useful: evidence against"


def test_a_report_says_that_it_is_as_planned(planted: StudyFolder) -> None:
    records = load_study_records(planted)
    assert records.plan is not None
    [sentence] = format_plan(records)
    assert sentence == f"The analysis is as planned (plan {records.plan.hash[:8]}, recorded 2026-01-01)."
    section = build_plan_section(records)
    assert section["as_planned"]
    assert (section["hash"], section["changes"], section["look"]) == (records.plan.hash, [], 1)


def test_a_report_lists_every_later_change(tmp_path: Path) -> None:
    folder = write_study(tmp_path, STUDY, TRUTH)
    more = STUDY.model_copy(update={"replicates": 5})
    record_study(more, folder, {})
    for trial in plan_trials(more)[-4:]:
        write_trial(folder, trial, TRUTH)
    content = yaml.safe_load(folder.config.read_text())
    content["study"]["analysis"]["confidence"] = 0.9
    folder.config.write_text(yaml.safe_dump(content))
    text = _text(write_report(folder))
    assert "The analysis has changed since it was planned" in text
    assert "with 16 finished results: replicates from 4 to 5." in text
    assert "Changed without a record of when: confidence from 0.95 to 0.9." in text
    assert "look 2" in text
    answers = json.loads((folder.report / "answers.json").read_text())
    assert [change["key"] for change in answers["plan"]["changes"]] == ["replicates", "confidence"]
    assert answers["plan"]["confidence"] == pytest.approx(0.95)


def test_a_report_says_that_no_plan_was_recorded(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=2, **GRID), only=lambda trial: False)
    content = yaml.safe_load(folder.config.read_text())
    del content["analysis_plan"], content["amendments"]
    folder.config.write_text(yaml.safe_dump(content))
    assert "No plan of the analysis was recorded before the data." in _text(write_report(folder))


@pytest.mark.parametrize(
    ("changed", "recorded"),
    [
        ({"confidence": 0.6}, True), ({"margins": {"accuracy": 0.0}}, True), ({"metric": "test_accuracy"}, True),
        ({"confidence": 0.6}, False),
    ],
)  # fmt: skip
def test_a_verdict_after_settings_were_changed_is_marked_post_hoc(
    tmp_path: Path, changed: dict[str, Any], recorded: bool
) -> None:
    """Among many margins and levels there is one that gives a verdict; the planned verdict is named first."""
    close = Truth(accuracy=lambda trial: 0.905 if trial.config.norm == "sn" else 0.9, shared={})
    folder = write_study(tmp_path, STUDY, close)
    assert answer_questions(load_study_records(folder))["useful"].planned_verdict is None
    data = STUDY.model_dump(mode="json")
    after = study_from_dict({**data, "analysis": {**data["analysis"], **changed}}, "test")
    if recorded:
        record_study(after, folder, {"command": "test"})
    else:
        content = yaml.safe_load(folder.config.read_text())
        write_yaml(folder.config, {**content, "study": after.model_dump(mode="json")})
    records = load_study_records(folder)
    answer = answer_questions(records)["useful"]
    assert answer.planned_verdict == answer.to_json()["planned_verdict"] == "not enough evidence"
    assert answer.answer.startswith("Post hoc, because the plan was changed after there were results (")
    assert 'The verdict as planned is "not enough evidence".' in answer.answer
    if not recorded:
        page = _text(write_report(folder))
        assert "post hoc" in page
        assert "(planned)" not in page


def test_a_verdict_after_levels_were_taken_away_is_marked_post_hoc(tmp_path: Path) -> None:
    """Without the norm that was better, sn is the best one."""
    accuracies = {"sn": 0.9, "ln": 0.87, "bn": 0.95}
    study = build_study(3, ("useful",), norm=["sn", "ln", "bn"])
    folder = write_study(tmp_path, study, Truth(accuracy=lambda trial: accuracies[trial.config.norm]))
    planned = answer_questions(load_study_records(folder))["useful"]
    assert (planned.verdict, planned.planned_verdict) == ("not supported", None)
    after = study_from_dict({**study.model_dump(mode="json"), "factors": {"norm": ["sn", "ln"]}}, "test")
    record_study(after, folder, {"command": "test"})
    answer = answer_questions(load_study_records(folder))["useful"]
    assert (answer.planned_verdict, answer.answer.startswith("Post hoc")) == ("not supported", True)


def test_settings_that_were_changed_before_there_were_results_are_the_plan(tmp_path: Path) -> None:
    folder = write_study(tmp_path, STUDY, TRUTH, only=lambda trial: False)
    data = STUDY.model_dump(mode="json")
    after = study_from_dict({**data, "analysis": {**data["analysis"], "confidence": 0.9}}, "test")
    record_study(after, folder, {"command": "test"})
    for trial in plan_trials(STUDY):
        write_trial(folder, trial, TRUTH)
    answer = answer_questions(load_study_records(folder))["useful"]
    assert (answer.verdict, answer.planned_verdict) == ("supported", None)


def test_a_damaged_trial_is_waited_for(tmp_path: Path) -> None:
    """Damaging the records of a norm's worst runs gives no verdict."""
    folder = write_study(tmp_path, STUDY, TRUTH)
    last = plan_trials(STUDY)[-1]
    folder.trial(last.trial_id, last.replicate).metrics.write_text("")
    answer = answer_questions(load_study_records(folder))["useful"]
    assert (answer.interim, answer.verdict) == (True, "not enough evidence")
    assert "(1 damaged, to be trained again by the next run)" in answer.answer
