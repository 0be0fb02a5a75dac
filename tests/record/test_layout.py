"""Reading and writing records: atomic, tolerant of damage, honest about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.record.io import (
    append_line,
    file_digest,
    quarantine,
    read_attempts,
    read_json,
    read_metrics,
    write_bytes,
    write_json,
)
from study.record.layout import SCHEMA, StudyFolder, TrialFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    """A finished trial."""
    folder = TrialFolder(tmp_path / "sn-12345678" / "r0")
    folder.path.mkdir(parents=True)
    folder.metrics.write_text("rows")
    write_json(
        folder.result,
        {"schema": SCHEMA, "status": "done", "metrics": {}, "files": {"metrics.jsonl": file_digest(folder.metrics)}},
    )
    return folder


def test_a_finished_record_is_read(folder: TrialFolder) -> None:
    assert folder.read_result() is not None
    assert folder.damaged_files() == []
    assert folder.status() == ("done", "")
    assert (folder.trial_id, folder.replicate, folder.key) == ("sn-12345678", 0, "sn-12345678-r0")


@pytest.mark.parametrize("damage", ["row", "rows and more", ""])
def test_a_file_of_another_size_unfinishes_a_record(folder: TrialFolder, damage: str) -> None:
    folder.metrics.write_text(damage)
    assert folder.read_result() is None
    assert folder.damaged_files() == ["metrics.jsonl"]


def test_a_flipped_byte_is_found(folder: TrialFolder) -> None:
    folder.metrics.write_text("rowz")
    assert folder.damaged_files() == ["metrics.jsonl"]


def test_a_missing_file_is_found(folder: TrialFolder) -> None:
    folder.metrics.unlink()
    assert folder.damaged_files() == ["metrics.jsonl"]
    assert folder.read_result() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 99}', "\x00\x00", '{"schema": 1, "status": "done"}'])
def test_a_damaged_result_is_none(folder: TrialFolder, text: str) -> None:
    folder.result.write_text(text)
    assert folder.read_result() is None
    assert folder.damaged_files() == ["result.json"]
    assert folder.status() == ("damaged", "result.json")


def test_no_record_is_planned(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "sn" / "r3")
    assert folder.status() == ("planned", "")
    assert not folder.path.exists()  # to ask leaves nothing
    assert folder.damaged_files() == []


def test_a_started_trial_is_running_while_its_lock_is_held_and_stale_after(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "sn" / "r3")
    write_json(folder.state, {"state": "running", "attempt": 2})
    with folder.lock():
        assert folder.status()[0] == "running"
    state, reason = folder.status()
    assert state == "stale"
    assert "attempt 2" in reason


def test_writing_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_wandb_runs_of_all_trials_are_linked_in_one_folder_and_follow_them(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    first = folder.trial("sn-1", 0).wandb / "offline-run-1-sn-1-r0"
    first.mkdir(parents=True)
    folder.link_wandb_runs()
    first.rename(first.with_name("offline-run-2-sn-1-r0"))
    folder.link_wandb_runs()
    folder.link_wandb_runs()
    (link,) = folder.wandb.iterdir()
    assert link.name == "offline-run-2-sn-1-r0"
    (tmp_path / "study").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "wandb" / link.name).is_dir()


def test_the_summary_run_is_linked_too_and_what_is_synced_is_counted(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    trial = folder.trial("sn-1", 0).wandb / "offline-run-1-sn-1-r0"
    summary = folder.report / "wandb" / "offline-run-2-summary-study"
    for run in (trial, summary):
        run.mkdir(parents=True)
    folder.link_wandb_runs()
    assert {link.name for link in folder.wandb.iterdir()} == {trial.name, summary.name}
    assert folder.unsynced_runs() == 2
    (trial / "run-sn-1-r0.wandb.synced").touch()
    assert folder.unsynced_runs() == 1


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert read_json(tmp_path / "x.json") is None


def test_metrics_keep_the_last_row_of_an_epoch_and_a_name_and_skip_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": 1, "name": "a", "value": 1}, {"epoch": 1, "name": "a", "value": 2}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"epoch": 2, "na')
    assert read_metrics(path) == [rows[1]]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("torn", ['{"epoch": 2', '"name": "b"}', "", "]", "[1", "1], [2", "3"])
def test_any_broken_line_costs_only_itself(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"epoch": epoch, "name": "a"}) for epoch in range(3)]
    path.write_text("\n".join([rows[0], torn, rows[1], torn, torn, rows[2]]))
    assert [row["epoch"] for row in read_metrics(path)] == [0, 1, 2]


def test_two_halves_that_would_make_a_row_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 2\n"name": "b"}\n')
    assert read_metrics(path) == []


def test_what_is_set_aside_keeps_its_content_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("bad")
    aside = quarantine(path)
    assert not path.exists()
    assert aside.read_text() == "bad"
    assert aside.name.startswith("last.ckpt.damaged-")


def test_an_attempts_log_with_a_torn_line_is_read_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "attempts.jsonl"
    append_line(log, {"attempt": 1})
    with log.open("a") as file:
        file.write('{"attempt": 2, "pi')
    append_line(log, {"attempt": 3})
    append_line(log, {"attempt": 4})
    assert [line["attempt"] for line in read_attempts(log)] == [1, 3, 4]
    assert read_attempts(tmp_path / "none.jsonl") == []
