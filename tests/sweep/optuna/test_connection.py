"""Storages that do not open, and whether Optuna's dashboard opens ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from study.config.errors import UserError
from study.plan.loading import load_study
from study.record.layout import StudyFolder
from study.sweep.optuna import connection
from study.sweep.optuna.connection import check_storage, open_trial_source
from tests.conftest import Command
from tests.services.fixtures import Postgres
from tests.sweep.optuna.searches import result


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql+psycopg://me:p%40ss@127.0.0.1:1/db", "onnection refused"),
        ("postgresql://me@127.0.0.1:1/db?password=p%40ss", "onnection refused"),
        ("postgresql+psycopg://me:p%40ss@host.invalid/db", "host.invalid"),
        ("postgresql+psycopg://me:p@ss/w:rd@127.0.0.1:1/db", "@ is written as %40"),
        ("oracle+oracledb://me:p%40ss@127.0.0.1/db", "a Python package is missing"),
        ("me:p@ss", "cannot be opened"),
        ("sqlite:////no/such/folder/x.db", "unable to open database file"),
    ],
)
def test_a_storage_that_does_not_open_is_one_line(url: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.5)
    assert_one_line(url, complaint)


def test_a_bad_url_ends_the_command_before_it_writes_anything(command: Command, tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:p@ss/w:rd@127.0.0.1:1/db"
    out = tmp_path / "runs"
    ended = command("--study", "depth_vs_batch", "--scale", "smoke", "--storage", url, "--out", str(out))
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert "@ is written as %40" in ended.err
    assert "ss/w" not in ended.err
    assert not out.exists()


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [({"password": "p@ss"}, "password authentication failed"), ({"database": "nope"}, '"nope" does not exist')],
    ids=["password", "database"],
)
def test_an_error_that_a_retry_does_not_fix_is_one_line(
    postgres: Postgres, wrong: dict[str, str], complaint: str
) -> None:
    assert_one_line(postgres.url_with(**wrong), complaint)


def assert_one_line(url: str, complaint: str) -> None:
    """Checks the error of a storage, which must not show a password."""
    with pytest.raises(UserError) as caught:
        check_storage(url)
    message = str(caught.value)
    assert complaint in message
    assert "\n" not in message
    assert not [secret for secret in ("p%40ss", "ss/w") if secret in message]


@pytest.mark.parametrize("name", ["50% done? #1 [x]", "a?mode=memory", "größe%20x", "a;b&c=d"])
def test_the_database_is_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / name)
    folder.path.mkdir()
    source = open_trial_source(load_study("depth_vs_batch", "smoke"), folder, None)
    for trials in source.rounds():
        source.record_result(trials[0], result(0.9))
    assert folder.storage.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_optuna_dashboard_opens_the_storage(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    folder = StudyFolder(tmp_path)
    given = request.getfixturevalue("postgres").url if kind == "postgres" else None
    source = open_trial_source(load_study("depth_vs_batch", "smoke"), folder, given)
    for trials in source.rounds():
        for trial in trials:
            source.record_result(trial, result(0.5))
    app = dashboard.wsgi(given or f"sqlite:///{folder.storage}")
    (listed,) = get_json(app, "/api/studies")["study_summaries"]
    shown = get_json(app, f"/api/studies/{listed['study_id']}", "after=0")
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 4


def get_json(app: Callable[..., Iterable[bytes]], path: str, query: str = "") -> dict[str, Any]:
    """The answer of a web application to a request, without a server."""
    request = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(request)
    return json.loads(b"".join(app(request, lambda status, headers, *_: None)))
