"""A storage that is unavailable for a while delays a study and changes nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from study.config.errors import UserError
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import read_json
from study.record.layout import StudyFolder
from study.sweep.optuna import retry
from study.sweep.optuna.connection import open_trial_source
from tests.conftest import ROOT
from tests.services.fixtures import Postgres
from tests.sweep.optuna.searches import play, result, score, search, stored_trials, undisturbed_suggestions


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.01)


@contextmanager
def lost_replies(every: int) -> Iterator[list[int]]:
    """Loses the reply of every so many commits; counts the commits."""
    commit, commits = DefaultDialect.do_commit, []

    def do_commit(self: DefaultDialect, connection: Any) -> None:
        commit(self, connection)
        commits.append(len(commits))
        if len(commits) % every == 0:
            raise sqlite3.OperationalError("database is locked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultDialect, "do_commit", do_commit)
        yield commits


# ------------------------------------------------------------------------------------------------------------- SQLite


def test_a_grid_with_lost_replies_has_every_trial_once(tmp_path: Path, short_pauses: None) -> None:
    study, folder = load_study("depth_vs_batch", "smoke", ["replicates=5"]), StudyFolder(tmp_path)
    source = open_trial_source(study, folder, None, lambda line: None)
    with lost_replies(2):
        for trials in source.rounds():
            for trial in trials:
                source.record_result(trial, result(0.5))
                source.flush()
    keys = [trial.user_attrs["key"] for trial in stored_trials(study, f"sqlite:///{folder.storage}")]
    assert sorted(keys) == sorted(trial.key for trial in plan_trials(study))


@pytest.mark.parametrize("every", [17, 23])
def test_a_search_with_lost_replies_suggests_the_same(tmp_path: Path, short_pauses: None, every: int) -> None:
    expected = undisturbed_suggestions()
    source = open_trial_source(search(), StudyFolder(tmp_path), None, lambda line: None)
    with lost_replies(every) as commits:
        assert play(source) == expected
    assert len(commits) > 150


def test_a_locked_file_does_not_delay_a_grid(tmp_path: Path) -> None:
    study, folder, lines = load_study("depth_vs_batch", "smoke"), StudyFolder(tmp_path), []
    source = open_trial_source(study, folder, None, lines.append)
    rounds = source.rounds()
    first, *_ = next(rounds)
    other = sqlite3.connect(folder.storage, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    source.record_result(first, result(0.5))
    started = time.monotonic()
    source.flush()
    source.flush()
    assert time.monotonic() - started < 4
    other.execute("COMMIT")
    assert list(rounds) == []
    assert len(stored_trials(study, f"sqlite:///{folder.storage}")) == 1
    assert [line.rpartition("study.db: ")[2][:15] for line in lines] == ["does not answer", "answers again"]


def test_a_full_disk_ends_a_study_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    source = open_trial_source(load_study("depth_vs_batch", "smoke"), StudyFolder(tmp_path), None)
    monkeypatch.setattr("study.sweep.optuna.grid.add_trials", full)
    source.record_result(next(source.rounds())[0], result(0.5))
    with pytest.raises(UserError, match=r"study\.db: database or disk is full"):
        source.flush()


# --------------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server_that_restarts_only_delays_a_study(tmp_path: Path, postgres: Postgres) -> None:
    settings = ["norm=[sn, bn]", "batch_size=2", "epochs=1", "train_samples=64", "tracking.mode=disabled"]
    output = tmp_path / "output"
    with output.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, ROOT / "run_study.py", "--study", "depth_vs_batch", "--scale", "smoke",
             *(part for setting in settings for part in ("--set", setting)),
             "--out", tmp_path / "runs", "--workers", "1", "--storage", postgres.url],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(lambda: "Ctrl-C stops" in output.read_text(), driver)
        postgres.stop()
        wait_until(lambda: "does not answer" in output.read_text(), driver)
        time.sleep(1)
        postgres.start()
        assert driver.wait(timeout=200) == 0
    assert "answers again" in output.read_text()
    stored = stored_trials(load_study("depth_vs_batch", "smoke"), postgres.url)
    assert {trial.params["norm"] for trial in stored} == {"sn", "bn"}
    assert len(stored) == 2
    results = [read_json(Path(trial.user_attrs["record"]) / "result.json") or {} for trial in stored]
    assert [trial.value for trial in stored] == [each["metrics"]["val_accuracy"] for each in results]
    assert_nowhere([b"p@ss/w:rd", b"p%40ss"], tmp_path)


def assert_nowhere(secrets: list[bytes], folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert not [secret for secret in secrets if secret in path.read_bytes()], path


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.postgres
def test_a_search_on_a_server_that_restarts_suggests_the_same(tmp_path: Path, postgres: Postgres) -> None:
    lines: list[str] = []
    seen: list[str] = []
    source = open_trial_source(search(), StudyFolder(tmp_path), postgres.url, lines.append)
    restart = threading.Timer(1.0, postgres.start)  # seconds after the stop
    for number, trials in enumerate(source.rounds()):
        seen += [trial.key for trial in trials]
        for trial in trials:
            source.record_result(trial, result(score(trial)))
        if number == 1:
            postgres.stop()
            restart.start()
    restart.join()
    assert seen == undisturbed_suggestions()
    assert ["does not answer" in line for line in lines] == [True, False]
    assert not any("p%40ss" in line or "p@ss" in line for line in lines)
