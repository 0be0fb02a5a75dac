"""Tasks beside a running study, and the interim answers they compute."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from study.analysis.report.interim_answers import compute_interim_answers
from study.bench.synthetic_records import Truth, write_study
from study.cli.background import BackgroundTask
from study.config.schema import StudyConfig
from study.record.layout import StudyFolder
from study.sweep.executors.resources import count_cores
from tests.cli.conftest import NAME


def wait_for(task: BackgroundTask, version: object) -> None:
    deadline = time.monotonic() + 60
    while not task.poll(version):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_task_pauses_in_proportion_to_its_cost_and_waits_for_a_new_version(tmp_path: Path) -> None:
    task = BackgroundTask("answers", StudyFolder(tmp_path), share=0.02, first=0.0)
    task.command = [sys.executable, "-c", 'print(\'{"result": 7, "seconds": 3}\')']
    wait_for(task, version=1)
    assert task.result == 7
    assert task.due - time.monotonic() == pytest.approx(3 / 0.02 / count_cores(), abs=1)
    task.due = 0.0
    assert not task.poll(1)
    assert task.process is None
    task.poll(2)
    assert task.process is not None
    task.close()
    assert task.process is None


@pytest.mark.parametrize(
    ("code", "error"),
    [("import sys; sys.exit(3)", "ended with exit code 3"),
     ("print('{\"error\": \"no such file\", \"seconds\": 1}')", "no such file")],
)  # fmt: skip
def test_a_failure_is_an_error_and_keeps_the_last_result(code: str, error: str, tmp_path: Path) -> None:
    task = BackgroundTask("answers", StudyFolder(tmp_path), share=1.0, first=0.0)
    task.result, task.command = 7, [sys.executable, "-c", code]
    wait_for(task, version=0)
    assert (task.error, task.result) == (error, 7)


def test_interim_answers_come_from_the_records(study: StudyConfig, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / NAME)
    write_study(folder, study, Truth(accuracy=lambda trial: 0.9 if trial.config.norm == "sn" else 0.8))
    answers = compute_interim_answers(folder)
    useful, impacts = answers["questions"]
    assert answers["n"] == 8
    assert (useful["name"], useful["verdict"]) == ("useful", "supported")
    number = r"\+0\.\d{3} \(0\.\d{3} to 0\.\d{3}, n = 2\)"
    assert re.fullmatch(number + " validation accuracy, sn - bn", useful["effects"][0])
    assert impacts["name"] == "impacts"
