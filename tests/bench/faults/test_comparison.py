"""What counts as a difference between a disturbed study and an undisturbed one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.bench.faults.comparison import StudyDifferences, compare_studies, was_trained_twice
from study.record.io import append_line, file_digest, read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from tests.bench.faults.conftest import add_to_optuna, copy_study, first_trial


def start(attempt: int, time: float, step: int = 0) -> dict[str, Any]:
    return {"attempt": attempt, "pid": 1, "time": time, "step": step}


def end(attempt: int, time: float, step: int, how: str = "interrupted") -> dict[str, Any]:
    return {"attempt": attempt, "time": time, "step": step, "how": how}


OVERLAPPING = [start(1, 0), start(2, 5), end(1, 9, 90, "done"), end(2, 14, 90, "done")]


@pytest.mark.parametrize(
    ("twice", "attempts"),
    [
        (False, []),
        (False, [start(1, 0), end(1, 9, 90, "done")]),
        (False, [start(1, 0), start(2, 5, 40), end(2, 9, 90, "done")]),  # killed
        (False, [start(1, 0), end(1, 4, 40), start(2, 5, 40), end(2, 9, 90, "done")]),
        (False, [start(1, 0), end(1, 9, 90, "done"), start(2, 20, 90), end(2, 21, 90, "done")]),  # a record repaired
        (True, OVERLAPPING),
        (True, [start(1, 0), start(2, 5), end(2, 8, 90, "done"), end(1, 9, 60)]),
        (True, [start(1, 0), start(1, 1), end(1, 9, 90, "done")]),
        (True, [start(1, 0), end(1, 9, 90, "done"), start(2, 20, 40), end(2, 29, 90, "done")]),
        (True, [start(1, 0), end(1, 9, 90, "done"), start(2, 20), end(2, 29, 30)]),
    ],
)
def test_attempts_that_overlap_or_train_after_a_result_count(twice: bool, attempts: list[dict[str, Any]]) -> None:
    shuffled = random.Random(0).sample(attempts, len(attempts))
    assert was_trained_twice(shuffled) == twice


def delete_result(folder: StudyFolder) -> None:
    first_trial(folder).result.unlink()


def train_twice(folder: StudyFolder) -> None:
    for line in OVERLAPPING:
        append_line(first_trial(folder).attempts_log, line)


def change_a_metric(folder: StudyFolder) -> None:
    record = first_trial(folder)
    metrics = (read_json(record.result) or {})["metrics"]
    write_consistent_result(record, metrics={**metrics, "val_loss": metrics["val_loss"] * (1 + 1e-15)})


def change_a_line(folder: StudyFolder) -> None:
    record = first_trial(folder)
    first, *rest = record.metrics.read_text().splitlines(keepends=True)
    record.metrics.write_text("".join([first.replace('"step": 0', '"step": 1'), *rest]))
    write_consistent_result(record)


def change_a_weight(folder: StudyFolder) -> None:
    record = first_trial(folder)
    data = record.switch_weights.read_bytes()
    record.switch_weights.write_bytes(data[:999] + bytes([data[999] ^ 1]) + data[1000:])
    write_consistent_result(record)


def change_the_status(folder: StudyFolder) -> None:
    write_consistent_result(first_trial(folder), status="diverged")


def change_the_report(folder: StudyFolder) -> None:
    (folder.report / "answers.json").write_text('{"a": 1}')


def delete_the_report(folder: StudyFolder) -> None:
    (folder.report / "answers.json").unlink()


def add_to_optuna_again(folder: StudyFolder) -> None:
    add_to_optuna(folder, first_trial(folder).key)


def write_consistent_result(record: TrialFolder, **changes: Any) -> None:
    """Rewrites result.json so that its digests fit the changed files, as if training had given other numbers."""
    result = read_json(record.result) or {}
    result["files"] = {name: file_digest(record.path / name) for name in result["files"]}
    write_json(record.result, {**result, **changes})


def compare_with_copy(finished: StudyFolder, path: Path, harm: Callable[[StudyFolder], None]) -> StudyDifferences:
    copy = copy_study(finished, path)
    harm(copy)
    return compare_studies(finished, copy, f"sqlite:///{copy.storage}")


def test_a_copy_does_not_differ(finished_study: StudyFolder, tmp_path: Path) -> None:
    assert compare_with_copy(finished_study, tmp_path, lambda copy: None) == StudyDifferences()


@pytest.mark.parametrize(
    ("harm", "differences"),
    [
        (delete_result, lambda key: {"lost": {key}}),
        (train_twice, lambda key: {"run_twice": {key}}),
        (change_a_metric, lambda key: {"differing": {key: 1}}),
        (change_a_line, lambda key: {"differing": {key: 1}}),
        (change_a_weight, lambda key: {"differing": {key: 1}}),
        (change_the_status, lambda key: {"differing": {key: 1}}),
        (change_the_report, lambda key: {"report_differs": True}),
        (delete_the_report, lambda key: {"report_differs": True}),
        (add_to_optuna_again, lambda key: {"optuna_errors": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", "").replace("<lambda>", ""),
)
def test_each_harm_is_one_difference(
    finished_study: StudyFolder,
    tmp_path: Path,
    harm: Callable[[StudyFolder], None],
    differences: Callable[[str], dict[str, Any]],
) -> None:
    expected = StudyDifferences(**differences(first_trial(finished_study).key))
    assert compare_with_copy(finished_study, tmp_path, harm) == expected
