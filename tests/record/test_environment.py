"""The environment in a record: versions and command, without passwords."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import study
from study.record.environment import describe_environment, format_command, hide_passwords
from tests.conftest import ROOT


def test_the_environment_states_versions_and_command_as_plain_json() -> None:
    environment = json.loads(json.dumps(describe_environment("python run_study.py")))
    assert environment["versions"]["torch"]
    assert environment["versions"]["normalizer-study"] == study.__version__
    assert environment["command"] == "python run_study.py"


def test_a_recorded_command_can_be_repeated() -> None:
    arguments = ["--study", "x", "--set", "norm=[sn, bn]"]
    assert shlex.split(format_command(arguments)) == ["python", "run_study.py", *arguments]


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ(tmp_path: Path) -> None:
    file = tmp_path / "study" / "record" / "environment.py"
    file.parent.mkdir(parents=True)
    shutil.copy(ROOT / file.relative_to(tmp_path), file)

    def git_commit() -> str:
        return str(runpy.run_path(str(file))["git_commit"]())

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit() == "unknown"
    git("init")
    assert git_commit() == "unknown"
    git("add", ".")
    git("commit", "-m", "one")
    assert git_commit() == git("rev-parse", "HEAD")
    file.write_text(file.read_text() + "\n")
    assert git_commit() == git("rev-parse", "HEAD") + "+changes"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:s3%40cret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:a@b/s3cret:d%@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:s3 cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3:/cret&sslmode=require", "postgresql://host/db?user=me&password=***&sslmode=require"),
        ("postgresql://host/db?sslpassword=s3cret", "postgresql://host/db?sslpassword=***"),
        ("postgresql://me:s3\ncret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me\n:s3cret@host/db", "postgresql://me\n:***@host/db"),
        ("mysql://host/db?user=me&passwd=s3cret", "mysql://host/db?user=me&passwd=***"),
        ("postgresql://host/db?options=-c password=s3cret", "postgresql://host/db?options=-c password=***"),
        ("postgresql://host/db?options=-c%20password%3Ds3cret&x=1", "postgresql://host/db?options=-c%20password%3D***&x=1"),
        ("postgresql://host/db?PassWord='s3 cret'", "postgresql://host/db?PassWord=***"),
        ("http://host/?api_key=s3cret&token=s3cret", "http://host/?api_key=***&token=***"),
        ("https://host:8080/path", "https://host:8080/path"),
    ],
)  # fmt: skip
def test_a_password_never_reaches_a_record(url: str, shown: str) -> None:
    for arguments in (["--storage", url], [f"--storage={url}"], ["--set", f"data_root={url}"]):
        line = format_command(arguments)
        assert "cret" not in line
        assert shown in shlex.split(line)[-1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://s3cret@host/path", "https://***@host/path"),
        ("git clone https://s3cret@github.com/a/b.git", "git clone https://***@github.com/a/b.git"),
        ("http://host/?pass=s3cret&user=me", "http://host/?pass=***&user=me"),
        ("db_pass=s3cret", "db_pass=***"),
        ("pass: s3cret", "pass: ***"),
        ("password: s3cret", "password: ***"),
        ("password:s3cret", "password:***"),
        ('{"password": "s3 cret", "user": "me"}', '{"password": ***, "user": "me"}'),
        ("--password s3cret --user me", "--password *** --user me"),
        ("--db-password s3cret", "--db-password ***"),
        ("--token=s3cret", "--token=***"),
        ("--api-key s3cret", "--api-key ***"),
        ("Authorization: Bearer s3cret", "Authorization: Bearer ***"),
        ("curl -H 'Authorization: Basic s3cret' host", "curl -H 'Authorization: Basic ***' host"),
        ("authorization=s3cret", "authorization=***"),
        ("Bearer eyJhbGciOi.s3cret.s3cret", "Bearer ***"),
        ("api_key=s3cret", "api_key=***"),
        ("WANDB_API_KEY=s3cret", "WANDB_API_KEY=***"),
        ("AWS_SECRET_ACCESS_KEY=s3cret", "AWS_SECRET_ACCESS_KEY=***"),
        ("client_secret: 's3cret'", "client_secret: ***"),
    ],
)
def test_a_secret_in_a_text_is_masked_once(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
    assert hide_passwords(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "pass rate: 3", "tokens per second: 5000", "max_tokens=3", "bypass=1", "compass: north", "a pass over the data",
        "one token is enough", "ssh://git@github.com/a/b", "me@host:path", "the password is wrong", "Basic training",
        "secretary: Ann", "passed: 3 of 4", "https://host/path@2x.png", "authorization is needed", "keys: 3",
        "/etc/passwd: cannot be read", "runs/my_token: no such file",
    ],
)  # fmt: skip
def test_plain_text_is_not_masked(text: str) -> None:
    assert hide_passwords(text) == text


@pytest.mark.parametrize("arguments", [["--password", "s3cret"], ["--token", "s3 cret"]])
def test_a_secret_that_is_an_argument_of_its_own_is_masked(arguments: list[str]) -> None:
    assert "cret" not in format_command(["--study", "x", *arguments])


@pytest.mark.parametrize(
    "text",
    [
        word * (100_000 // len(word))
        for word in (
            "--a-",
            "--token ",
            "password: ",
            "https://a",
            "https://@",
            "Bearer ",
            "Authorization: a ",
            "pass=",
            "'",
        )
    ],
)
def test_masking_takes_linear_time(text: str) -> None:
    started = time.process_time()
    hide_passwords(text)
    hide_passwords(f"password={text}@")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["a" * 400_000, "a://b:" * 60_000, "a://b: " * 60_000 + "@", "?password" * 40_000])
def test_hiding_passwords_takes_no_longer_than_reading(text: str) -> None:
    started = time.process_time()
    hide_passwords(text)
    assert time.process_time() - started < 2
