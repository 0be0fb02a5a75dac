"""Reading and writing the files of a record: atomic writes, and reads that skip damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.record.contents import read_metrics
from study.record.io import (
    append_line,
    quarantine,
    read_attempts,
    read_json,
    write_bytes,
    write_json,
)


def test_writing_replaces_a_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert read_json(tmp_path / "x.json") is None


def test_metrics_have_the_last_row_of_each_epoch_and_name_and_no_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": 1, "name": "a", "value": 1}, {"epoch": 1, "name": "a", "value": 2}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"epoch": 2, "na')
    assert read_metrics(path) == [rows[1]]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("torn", ['{"epoch": 2', '"name": "b"}', "", "]", "[1", "1], [2", "3"])
def test_an_invalid_line_affects_no_other_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"epoch": epoch, "name": "a", "value": 1}) for epoch in range(3)]
    path.write_text("\n".join([rows[0], torn, rows[1], torn, torn, rows[2]]))
    assert [row["epoch"] for row in read_metrics(path)] == [0, 1, 2]


def test_two_incomplete_lines_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 2\n"name": "b"}\n')
    assert read_metrics(path) == []


def test_a_quarantined_file_keeps_its_content_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("bad")
    aside = quarantine(path)
    assert not path.exists()
    assert aside.read_text() == "bad"
    assert aside.name.startswith("last.ckpt.damaged-")


def test_an_attempts_log_with_an_incomplete_line_is_read_and_continued(tmp_path: Path) -> None:
    log = tmp_path / "attempts.jsonl"
    append_line(log, {"attempt": 1})
    with log.open("a") as file:
        file.write('{"attempt": 2, "pi')
    append_line(log, {"attempt": 3})
    append_line(log, {"attempt": 4})
    assert [line["attempt"] for line in read_attempts(log)] == [1, 3, 4]
    assert read_attempts(tmp_path / "none.jsonl") == []
