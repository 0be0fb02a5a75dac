"""The state of a trial, read from its folder: finished, damaged, running, stale or planned."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from study.record.contents import SCHEMA_VERSION
from study.record.io import file_digest, write_json
from study.record.layout import StudyFolder, TrialFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    """A finished trial."""
    folder = TrialFolder(tmp_path / "sn-12345678" / "r0")
    folder.path.mkdir(parents=True)
    folder.metrics.write_text("rows")
    write_json(
        folder.result,
        {
            "schema": SCHEMA_VERSION,
            "status": "done",
            "metrics": {},
            "files": {"metrics.jsonl": file_digest(folder.metrics)},
        },
    )
    return folder


def test_a_finished_trial_is_done(folder: TrialFolder) -> None:
    assert folder.read_result() is not None
    assert folder.damaged_files() == []
    assert folder.status() == ("done", "")
    assert (folder.trial_id, folder.replicate, folder.key) == ("sn-12345678", 0, "sn-12345678-r0")


@pytest.mark.parametrize("damage", ["row", "rows and more", ""])
def test_a_file_of_another_size_makes_a_trial_unfinished(folder: TrialFolder, damage: str) -> None:
    folder.metrics.write_text(damage)
    assert folder.read_result() is None
    assert folder.damaged_files() == ["metrics.jsonl"]


def test_a_flipped_byte_is_found(folder: TrialFolder) -> None:
    folder.metrics.write_text("rowz")
    assert folder.damaged_files() == ["metrics.jsonl"]


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31m"])
def test_a_folder_with_a_name_that_cannot_be_shown_is_no_trial(tmp_path: Path, name: bytes) -> None:
    for trial in (name, b"sn-12345678"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"trials", trial, b"r0"))
    assert [trial.key for trial in StudyFolder(tmp_path).trials()] == ["sn-12345678-r0"]


def test_a_missing_file_is_found(folder: TrialFolder) -> None:
    folder.metrics.unlink()
    assert folder.damaged_files() == ["metrics.jsonl"]
    assert folder.read_result() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 99}', "\x00\x00", '{"schema": 1, "status": "done"}'])
def test_a_damaged_result_is_none(folder: TrialFolder, text: str) -> None:
    folder.result.write_text(text)
    assert folder.read_result() is None
    assert folder.damaged_files() == ["result.json"]
    state, reason = folder.status()
    assert state == "damaged"
    assert reason.startswith("result.json: ")


def test_a_trial_without_a_record_is_planned(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "sn" / "r3")
    assert folder.status() == ("planned", "")
    assert not folder.path.exists()  # reading creates nothing
    assert folder.damaged_files() == []


def test_a_started_trial_is_running_while_its_lock_is_held_and_stale_after(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "sn" / "r3")
    write_json(folder.state, {"state": "running", "attempt": 2})
    with folder.lock():
        assert folder.status()[0] == "running"
    state, reason = folder.status()
    assert state == "stale"
    assert "attempt 2" in reason


def test_a_locked_trial_without_a_heartbeat_is_not_called_running(tmp_path: Path) -> None:
    """The node has died, and the file server has not released its lock; or the process is suspended."""
    folder = TrialFolder(tmp_path / "sn" / "r3")
    write_json(folder.state, {"state": "running", "pid": 7, "host": "node9", "job": "slurm 12_3"})
    with folder.lock():
        os.utime(folder.lock().owner, (time.time() - 180,) * 2)
        assert folder.is_locked()
        reason = "locked, without a sign of life from process 7 on node9 (slurm 12_3) for 3 min"
        assert folder.status() == ("stale", reason)
