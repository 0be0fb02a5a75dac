"""Whole studies with a W&B server, in health and in trouble: the server has what the records have."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from study.record.contents import read_metrics
from study.record.layout import StudyFolder, TrialFolder
from tests.conftest import ROOT
from tests.services.wandb_server import KEY, Run, WandbServer

T = TypeVar("T")
STUDY = """
title: Two norms
question: Is choosing useful?
base: {epochs: 20, batch_size: 16}
factors: {norm: [sn, bn]}
replicates: 1
"""
SETTINGS = ("--scale", "smoke", "--workers", "1", "--set", "checkpoint_seconds=0")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        assert not server.unknown


class Study:
    """A study in a folder of its own, run by the command that a user types, without any file of the user."""

    def __init__(self, path: Path, server: WandbServer) -> None:
        self.path, self.server = path, server
        self.folder = StudyFolder(path / "runs" / "tiny")
        self.file, self.home = path / "tiny.yaml", path / "home"
        self.home.mkdir(parents=True)
        self.file.write_text(STUDY)
        # What a notebook or another run of W&B would leave; norm kernels are compiled once per cache folder.
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB")},
            **server.environment, "HOME": str(self.home), "XDG_CACHE_HOME": cache, "WANDB_SERVICE": "3-1-unix-/nowhere",
        }  # fmt: skip
        del self.environment["WANDB_MODE"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "run_study.py"), *arguments, "--study", str(self.file), "--out",
                   str(self.path / "runs")]  # fmt: skip
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.path,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == code, printed
        assert KEY not in printed
        return printed

    def find_logs(self) -> list[Path]:
        """The transaction logs of W&B in the folders of the trials."""
        return [log for trial in self.folder.trials() for log in trial.wandb.glob("*run-*/*.wandb")]

    def find_run(self, trial: TrialFolder) -> Run:
        return self.server.runs[json.loads(trial.environment.read_text())["wandb"]["run"]]

    def check(self) -> None:
        """Asserts that the server has what the records have, once."""
        trials = list(self.folder.trials())
        summaries = [run for run in self.server.runs.values() if run.job_type == "summary"]
        assert len(self.server.runs) == len(trials) + len(summaries)
        assert len(summaries) == 1
        for trial in trials:
            check_run(trial, self.find_run(trial))

    def records(self) -> dict[str, bytes]:
        return {f"{t.key}/{file.name}": file.read_bytes() for t in self.folder.trials()
                for file in (t.metrics, t.switch_weights)}  # fmt: skip


def check_run(trial: TrialFolder, run: Run) -> None:
    """Asserts that a run has every epoch of a record once, in order, with its values, and its result."""
    result = trial.read_result()
    assert result is not None
    assert run.epochs == list(range(result["epochs"] + 1))
    for row in read_metrics(trial.metrics):
        assert run.history[row["epoch"]][row["name"]] == pytest.approx(row["value"])
    tables = [row for row in run.history if "switch_weights/table" in row]
    assert len(tables) == len(run.history) - len(run.epochs) == (run.config["norm"]["value"] == "sn")
    assert (run.state, run.summary["status"]) == ("finished", "done")
    assert run.summary["val_accuracy"] == pytest.approx(result["metrics"]["val_accuracy"])


def wait_for(find: Callable[[], T]) -> T:
    """Waits until `find` returns something, and returns it."""
    deadline = time.monotonic() + 120
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def find_trial_of_epoch(study: Study, epoch: int) -> TrialFolder | None:
    for trial in study.folder.trials():
        if any(row["epoch"] >= epoch for row in read_metrics(trial.metrics)):
            return trial
    return None


def kill(process: subprocess.Popen[str], *, group: bool = False) -> None:
    os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, str]]:
    """A study whose first trial was killed while it trained and tried again, and what its driver printed."""
    with WandbServer() as server:
        study = Study(tmp_path_factory.mktemp("finished"), server)
        driver = study.start(*SETTINGS)
        trial = wait_for(lambda: server.runs and find_trial_of_epoch(study, 4))
        os.kill(trial.read_state()["pid"], signal.SIGKILL)
        printed, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, printed
        yield study, printed
        assert not server.unknown


Finished = tuple[Study, str]


def test_a_trial_that_is_killed_and_tried_again_is_one_complete_run(finished: Finished) -> None:
    study, printed = finished
    assert "killed by SIGKILL; trying again" in printed
    study.check()
    assert "_runtime" in study.find_run(next(study.folder.trials())).history[0]


def test_the_terminal_shows_the_address_at_the_start_and_at_the_end_and_no_key(finished: Finished) -> None:
    study, printed = finished
    line = f"W&B: {study.server.url}/team/normalizer-study"
    assert [text for text in printed.splitlines() if "W&B" in text or "wandb" in text] == [line, line]
    texts = [file.read_bytes() for file in study.path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not [text for text in texts if KEY.encode() in text]


def test_a_run_has_readable_names_flat_keys_and_system_metrics(finished: Finished) -> None:
    study, _ = finished
    trial = max(study.folder.trials(), key=lambda trial: trial.attempts()[0])
    run = study.find_run(trial)
    (group,) = {each.group for each in study.server.runs.values()}
    assert group is not None
    assert group.startswith("tiny-")
    assert (run.name, run.id) == (trial.key, f"{trial.key}-{group.removeprefix('tiny-')}")
    shown = {name: run.config[name]["value"] for name in ("norm", "replicate", "attempts")}
    assert shown == {"norm": trial.read_description()["levels"]["norm"], "replicate": 0, "attempts": 2}
    assert "wandb-metadata.json" in run.files
    assert run.tags == [f"norm={shown['norm']}"]


def test_the_summary_run_holds_study_and_report_and_is_replaced(finished: Finished) -> None:
    study, _ = finished
    server = study.server
    (artifact,) = [each for each in server.artifacts.values() if each["artifactTypeName"] == "report"]
    assert artifact["state"] == "COMMITTED"
    assert {"study.yaml", "report.html", "answers.json"} <= set(artifact["entries"])
    (before,) = [name for name, run in server.runs.items() if run.job_type == "summary"]
    answers = study.folder.report / "answers.json"
    answers.write_text(answers.read_text() + "\n")
    assert "2 were complete" in study.run("sync")
    (after,) = [name for name, run in server.runs.items() if run.job_type == "summary"]
    assert after != before
    assert len(server.runs[after].history) == 1
    assert "0 trials uploaded, 2 were complete" in study.run("sync")
    assert len(server.runs[after].history) == 1
    study.check()


def test_every_epoch_is_there_once_however_often_a_study_is_killed_and_the_server_lost(
    tmp_path: Path, server: WandbServer
) -> None:
    """Offline, killed, uploaded by `wandb sync`; online and the driver killed; the server lost; `sync`."""
    study = Study(tmp_path, server)
    driver = study.start(*SETTINGS, "--set", "tracking.mode=offline")
    (log,) = wait_for(lambda: [log for log in study.find_logs() if log.stat().st_size > 1000])
    kill(driver, group=True)
    sync = [sys.executable, "-m", "wandb", "sync"]
    plain = {name: value for name, value in study.environment.items() if name != "WANDB_SERVICE"}
    subprocess.run([*sync, str(log.parent)], env=plain, check=True, capture_output=True, timeout=60)
    (run,) = server.runs.values()
    assert run.epochs

    driver = study.start(*SETTINGS)
    wait_for(lambda: server.calls["UpsertBucket"] > 1)
    kill(driver)
    known = server.calls["UpsertBucket"]
    driver = study.start(*SETTINGS)
    wait_for(lambda: server.calls["UpsertBucket"] > known)
    server.fault = "gone"
    started = time.monotonic()
    printed, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, printed
    assert "not completely on the server. To upload them: " in printed
    assert time.monotonic() - started < 90

    server.fault = None
    assert re.search("uploading (sn|bn)-", study.run("sync"))
    study.check()
    subprocess.run([*sync, *(str(log.parent) for log in study.find_logs())], env=plain, capture_output=True, timeout=60)
    study.check()
    assert "0 trials uploaded, 2 were complete" in study.run("sync")
