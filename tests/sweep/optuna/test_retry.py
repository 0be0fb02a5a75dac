"""A storage that is away for a while delays a study and changes nothing; one that will not come back is one line."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from study.config.errors import UserError
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from study.sweep.optuna import retry
from study.sweep.optuna.connection import open_trial_source
from tests.conftest import ROOT, Run
from tests.services.daemons import free_ports
from tests.services.fixtures import Postgres
from tests.sweep.optuna.test_studies import play, result, score, search

SMOKE = ["--study", "depth_vs_batch", "--scale", "smoke"]
FEW = ["--set", "norm=[sn, bn]", "--set", "batch_size=2", "--set", "epochs=2"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses."""
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)


@contextmanager
def lost_answers(every: int) -> Iterator[list[int]]:
    """Every so many commits come through, and their answer does not; counts the commits."""
    commit, commits = DefaultDialect.do_commit, []

    def do_commit(self: DefaultDialect, connection: Any) -> None:
        commit(self, connection)
        commits.append(len(commits))
        if len(commits) % every == 0:
            raise sqlite3.OperationalError("database is locked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultDialect, "do_commit", do_commit)
        yield commits


def stored(name: str, url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url).trials


# ------------------------------------------------------------------------------- any storage, and the study's own


def test_a_grid_told_over_lost_answers_has_every_trial_once(tmp_path: Path, quick: None) -> None:
    study, folder = load_study("depth_vs_batch", "smoke", ["replicates=5"]), StudyFolder(tmp_path)
    book = open_trial_source(study, folder, None, lambda line: None)
    with lost_answers(2):
        for trials in book.rounds():
            for trial in trials:
                book.record_result(trial, result(0.5))
                book.flush()
    keys = [trial.user_attrs["key"] for trial in stored(study.name, f"sqlite:///{folder.storage}")]
    assert sorted(keys) == sorted(trial.key for trial in plan_trials(study))


@pytest.mark.parametrize("every", [17, 23])
def test_a_search_over_lost_answers_suggests_what_an_undisturbed_one_does(
    tmp_path: Path, quick: None, every: int
) -> None:
    study = search(n_trials=12)
    undisturbed = play(
        open_trial_source(study, StudyFolder(tmp_path / "undisturbed"), f"sqlite:///{tmp_path}/undisturbed.db")
    )
    book = open_trial_source(
        study, StudyFolder(tmp_path / "disturbed"), f"sqlite:///{tmp_path}/disturbed.db", lambda line: None
    )
    with lost_answers(every) as commits:
        assert play(book) == undisturbed
    assert len(commits) > 150


def test_a_locked_file_does_not_hold_up_a_grid(tmp_path: Path) -> None:
    study, folder, said = load_study("depth_vs_batch", "smoke"), StudyFolder(tmp_path), []
    book = open_trial_source(study, folder, None, said.append)
    rounds = book.rounds()
    first, *_ = next(rounds)
    other = sqlite3.connect(folder.storage, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    book.record_result(first, result(0.5))
    started = time.monotonic()
    book.flush()
    book.flush()
    assert time.monotonic() - started < 4
    other.execute("COMMIT")
    assert list(rounds) == []
    assert len(stored(study.name, f"sqlite:///{folder.storage}")) == 1
    assert [line.rpartition("study.db: ")[2][:15] for line in said] == ["does not answer", "answers again"]


def test_a_full_disk_ends_a_study_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = open_trial_source(load_study("depth_vs_batch", "smoke"), StudyFolder(tmp_path), None)

    def full(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("study.sweep.optuna.grid.add_trials", full)
    for trials in book.rounds():
        book.record_result(trials[0], result(0.5))
        with pytest.raises(UserError, match=r"study\.db: database or disk is full"):
            book.flush()
        break


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
def test_a_storage_that_does_not_open_is_one_line(run_study: Run, tmp_path: Path, url: str, complaint: str) -> None:
    started = time.monotonic()
    done = run_study(*SMOKE, "--storage", url)
    assert time.monotonic() - started < 20
    assert_one_line(done, complaint)
    assert "ss/w" not in done.stderr
    assert not (tmp_path / "runs").exists()


def assert_one_line(done: subprocess.CompletedProcess[str], complaint: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert complaint in done.stderr
    assert "p%40ss" not in done.stderr + done.stdout
    assert done.stdout == ""


# -------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [({"password": "p@ss"}, "password authentication failed"), ({"database": "nope"}, '"nope" does not exist')],
    ids=["password", "database"],
)
def test_what_waiting_does_not_mend_is_one_line(
    run_study: Run, postgres: Postgres, wrong: dict[str, str], complaint: str
) -> None:
    assert_one_line(run_study(*SMOKE, "--storage", postgres.url_with(**wrong)), complaint)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server_that_restarts_only_delays_a_study(tmp_path: Path, postgres: Postgres) -> None:
    command = [sys.executable, str(ROOT / "run_study.py"), *SMOKE, *FEW, "--set", "tracking.mode=offline"]
    assert subprocess.run([*command, "--out", str(tmp_path / "sqlite")], capture_output=True).returncode == 0
    output = tmp_path / "output"
    with output.open("w") as file:
        driver = subprocess.Popen(
            [*command, "--out", str(tmp_path / "postgres"), "--workers", "1", "--storage", postgres.url],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(lambda: "Ctrl-C stops" in output.read_text(), driver)
        postgres.stop()
        wait_until(lambda: "does not answer" in output.read_text(), driver)
        time.sleep(1)
        postgres.start()
        assert driver.wait(timeout=200) == 0
    answers = [(tmp_path / kind / "depth_vs_batch/report/answers.json").read_bytes() for kind in ("sqlite", "postgres")]
    assert answers[0] == answers[1]
    assert "answers again" in output.read_text()
    trials = stored("depth_vs_batch", postgres.url)
    assert len({trial.user_attrs["key"] for trial in trials}) == len(trials) == 2
    assert {trial.user_attrs["status"] for trial in trials} == {"done"}
    assert all(Path(trial.user_attrs["record"], "result.json").exists() for trial in trials)
    assert_nowhere([b"p@ss/w:rd", b"p%40ss"], tmp_path)


def assert_nowhere(secrets: list[bytes], folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert not [secret for secret in secrets if secret in path.read_bytes()], path


def wait_until(true: Callable[[], bool], driver: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.postgres
def test_a_search_over_a_restart_suggests_what_one_on_sqlite_does(tmp_path: Path, postgres: Postgres) -> None:
    study, said, seen = search(n_trials=8), [], []
    on_sqlite = play(open_trial_source(study, StudyFolder(tmp_path / "sqlite"), f"sqlite:///{tmp_path}/study.db"))
    book = open_trial_source(study, StudyFolder(tmp_path / "postgres"), postgres.url, said.append)
    back = threading.Timer(1.0, postgres.start)  # s after the stop
    for number, trials in enumerate(book.rounds()):
        seen += [trial.key for trial in trials]
        for trial in trials:
            book.record_result(trial, result(score(trial)))
        if number == 1:
            postgres.stop()
            back.start()
    back.join()
    assert seen == on_sqlite
    assert ["does not answer" in line for line in said] == [True, False]
    assert not any("p%40ss" in line or "p@ss" in line for line in said)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_optuna_dashboard_opens_the_storage(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("optuna_dashboard")
    study, folder = load_study("depth_vs_batch", "smoke"), StudyFolder(tmp_path)
    given = request.getfixturevalue("postgres").url if kind == "postgres" else None
    book = open_trial_source(study, folder, given)
    for trials in book.rounds():
        for trial in trials:
            book.record_result(trial, result(0.5))
    (port,) = free_ports(1)
    url = given or f"sqlite:///{folder.storage}"
    dashboard = subprocess.Popen(
        [Path(sys.executable).parent / "optuna-dashboard", "--port", str(port), url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    try:
        (listed,) = ask(dashboard, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        shown = ask(dashboard, f"http://127.0.0.1:{port}/api/studies/{listed['study_id']}?after=0")
        assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 4
    finally:
        dashboard.terminate()
        dashboard.wait(timeout=20)


def ask(dashboard: subprocess.Popen[bytes], url: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)
        except OSError:
            assert dashboard.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
