"""What a record says of its making, and what it must not say."""

from __future__ import annotations

import json
import shlex

from study.record.environment import command_line, describe_environment


def test_the_environment_states_versions_and_command_as_plain_json() -> None:
    environment = json.loads(json.dumps(describe_environment("python run_study.py")))
    assert environment["versions"]["torch"]
    assert environment["command"] == "python run_study.py"


def test_a_command_can_be_typed_again() -> None:
    arguments = ["--study", "x", "--set", "norm=[sn, bn]"]
    assert shlex.split(command_line(arguments)) == ["python", "run_study.py", *arguments]


def test_a_password_never_reaches_a_record() -> None:
    line = command_line(["--storage", "postgresql://me:s3cret@host/db"])
    assert "s3cret" not in line
    assert "me:***@host" in line
