"""What a record says of its making, and what it must not say."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from study.record import environment
from study.record.environment import command_line, describe_environment, program_name


def test_the_environment_states_versions_and_command_as_plain_json() -> None:
    described = json.loads(json.dumps(describe_environment("python run_study.py")))
    assert described["versions"]["torch"]
    assert described["command"] == "python run_study.py"


def test_a_command_can_be_typed_again() -> None:
    arguments = ["--study", "x", "--set", "norm=[sn, bn]"]
    assert shlex.split(command_line(arguments)) == ["python", "run_study.py", *arguments]


def test_the_program_is_named_as_the_user_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_name() == "python run_study.py"  # in a checkout
    monkeypatch.setattr(
        environment, "__file__", str(tmp_path / "site-packages" / "study" / "record" / "environment.py")
    )
    assert program_name() == "run-study"
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["/usr/bin/run-study", "plan"])
    assert command_line(["plan", "--set", "norm=[sn, bn]"]) == "run-study plan --set 'norm=[sn, bn]'"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:s3%40cret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a@b/s3cret:d%@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:s3 cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3:/cret&sslmode=require", "postgresql://host/db?user=me&password=***&sslmode=require"),
        ("postgresql://host/db?sslpassword=s3cret", "postgresql://host/db?sslpassword=***"),
        ("https://host:8080/path", "https://host:8080/path"),
    ],
)  # fmt: skip
def test_a_password_never_reaches_a_record(url: str, shown: str) -> None:
    for arguments in (["--storage", url], [f"--storage={url}"], ["--set", f"data_root={url}"]):
        line = command_line(arguments)
        assert "cret" not in line
        assert shown in shlex.split(line)[-1]
