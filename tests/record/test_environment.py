"""The environment in a record: versions and command, without passwords."""

from __future__ import annotations

import json
import shlex

import pytest

from study.record.environment import describe_environment, format_command


def test_the_environment_states_versions_and_command_as_plain_json() -> None:
    environment = json.loads(json.dumps(describe_environment("python run_study.py")))
    assert environment["versions"]["torch"]
    assert environment["command"] == "python run_study.py"


def test_a_recorded_command_can_be_repeated() -> None:
    arguments = ["--study", "x", "--set", "norm=[sn, bn]"]
    assert shlex.split(format_command(arguments)) == ["python", "run_study.py", *arguments]


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
        line = format_command(arguments)
        assert "cret" not in line
        assert shown in shlex.split(line)[-1]
