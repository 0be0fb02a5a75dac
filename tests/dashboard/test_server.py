"""Whole studies with a W&B server, in health and in trouble: the server has what the records have."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from study.dashboard import sync as syncing
from study.plan.loading import read_study_file
from study.record.contents import read_metrics
from study.record.layout import StudyFolder, TrialFolder
from study.record.wandb_server import Connection
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
        where = ("--study", str(self.file), "--out", str(self.path / "runs"))
        command = [sys.executable, str(ROOT / "run_study.py"), *arguments, *SETTINGS, *where]
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

    def sync_files(self, logs: Iterable[Path]) -> None:
        """Runs W&B's own `wandb sync`."""
        command = [sys.executable, "-m", "wandb", "sync", *(str(log.parent) for log in logs)]
        environment = {name: value for name, value in self.environment.items() if name != "WANDB_SERVICE"}
        subprocess.run(command, env=environment, cwd=self.path, check=True, capture_output=True, timeout=60)

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


def check_run(trial: TrialFolder, run: Run) -> None:
    """Asserts that a run has every epoch of a record once, in order, with its values, and its result."""
    result = trial.read_result()
    assert result is not None
    has_choice = run.config["norm"]["value"] == "sn"
    assert run.epochs == list(range(0 if has_choice else 1, result["epochs"] + 1))
    by_epoch = {row.get("epoch"): row for row in run.history}
    for row in read_metrics(trial.metrics):
        assert by_epoch[row["epoch"]][row["name"]] == pytest.approx(row["value"])
    tables = [row for row in run.history if "switch_weights/table" in row]
    assert len(tables) == len(run.history) - len(run.epochs) == has_choice
    assert (run.state, run.summary["status"]) == ("finished", "done")
    assert run.tags == [f"norm={run.config['norm']['value']}"]
    assert (run.notes or f"attempt {result['attempts']}: done") == f"attempt {result['attempts']}: done"
    assert run.config["attempts"]["value"] == result["attempts"]
    assert run.config["environment"]["value"] == json.loads(trial.environment.read_text())
    assert run.summary["val_accuracy"] == pytest.approx(result["metrics"]["val_accuracy"])


def wait_for(find: Callable[[], T]) -> T:
    """Waits until `find` returns something, and returns it."""
    deadline = time.monotonic() + 120
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


Troubled = tuple[Study, Run, list[str]]
"""The study, the killed trial's run after `sync`, and what the last driver and the last `sync` printed."""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    """A finished study after everything that can happen.

    Offline and everything killed; uploaded by `wandb sync`; online, and a trial killed, then everything; `sync`;
    online, and the server lost; `sync` when it is back; `wandb sync` of all that is left.
    """
    with WandbServer() as server:
        study = Study(tmp_path_factory.mktemp("troubled"), server)
        driver = study.start("--set", "tracking.mode=offline")
        (log,) = wait_for(lambda: [log for log in study.find_logs() if log.stat().st_size > 1000])
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
        study.sync_files([log])
        (run,) = server.runs.values()
        assert run.epochs

        known = server.calls["UpsertBucket"]
        driver = study.start()
        wait_for(lambda: server.calls["UpsertBucket"] > known)
        (trial,) = study.folder.trials()
        attempts = trial.attempts()[0]
        os.kill(trial.read_state()["pid"], signal.SIGKILL)
        wait_for(lambda: trial.attempts()[0] > attempts)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
        wait_for(lambda: not trial.is_locked())  # a thread may hold a killed process for seconds
        study.run("sync")
        killed = copy.deepcopy(study.find_run(trial))

        last = server.calls["UpsertBucket"]
        driver = study.start("--set", "launch.setup=[export WORD=topsecret]")
        wait_for(lambda: server.calls["UpsertBucket"] > last)
        server.fault = "gone"
        printed, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, printed
        server.fault = None
        config = study.folder.config
        config.write_text(config.read_text().replace("mode: auto", "mode: offline"))  # as of a study that ran offline
        synced = study.run("sync")
        study.sync_files(study.find_logs())
        print(printed)
        yield study, killed, [printed, synced]
        assert not server.unknown


def test_every_epoch_is_on_the_server_once(troubled: Troubled) -> None:
    study, _, (_, synced) = troubled
    study.check()
    assert re.search("^uploading (sn|bn)-", synced, re.MULTILINE)


def test_a_killed_trial_says_so_after_sync(troubled: Troubled) -> None:
    _, run, _ = troubled
    assert (run.state, run.tags, run.summary["status"]) == ("failed", ["norm=sn", "killed"], "killed")
    assert run.notes is not None
    assert re.match(r"attempt \d: killed: its process ended without giving a reason$", run.notes)


def test_the_terminal_shows_the_address_at_the_start_and_at_the_end(troubled: Troubled) -> None:
    study, _, (printed, synced) = troubled
    address = f"W&B: {study.server.url}/team/normalizer-study"
    first, *between, second, third = [line for line in printed.splitlines() if "W&B" in line or "wandb" in line]
    assert (first, second) == (address, address)
    assert len(between) <= 1  # that the server fails, if this was found before the end
    assert re.match(
        rf"W&B: \d of the runs in .*wandb are not completely on a server "
        rf"\({study.server.url} cannot be reached: .*\)\. To upload them: .* sync --study ",
        third,
    )
    assert synced.splitlines()[-1] == address


def test_no_secret_is_printed_written_or_uploaded(troubled: Troubled) -> None:
    study, _, printed = troubled
    assert KEY not in "".join(printed)
    files = [file.read_bytes() for file in study.path.rglob("*") if file.is_file() and not file.is_symlink()]
    uploaded = [*study.server.stored.values(), repr(study.server.runs).encode()]
    assert [text for text in uploaded if b"launch.setup=***" in text]
    assert not [text for text in (*files, *uploaded) if KEY.encode() in text or b"topsecret" in text]


def test_a_run_has_readable_names_and_flat_keys(troubled: Troubled) -> None:
    study, _, _ = troubled
    trial = max(study.folder.trials(), key=lambda trial: trial.attempts()[0])
    run = study.find_run(trial)
    (group,) = {each.group for each in study.server.runs.values()}
    assert group is not None
    assert group.startswith("tiny-")
    assert (run.name, run.id) == (trial.key, f"{trial.key}-{group.removeprefix('tiny-')}")
    shown = {name: run.config[name]["value"] for name in ("norm", "replicate", "attempts")}
    assert shown == {"norm": "sn", "replicate": 0, "attempts": trial.attempts()[0]}
    assert run.tags == ["norm=sn"]


def test_the_summary_run_holds_study_and_report_and_is_replaced(troubled: Troubled) -> None:
    study, _, _ = troubled
    server = study.server
    (artifact,) = [each for each in server.artifacts.values() if each["artifactTypeName"] == "report"]
    assert artifact["state"] == "COMMITTED"
    assert {"study.yaml", "report.html", "answers.json"} <= set(artifact["entries"])
    (before,) = [name for name, run in server.runs.items() if run.job_type == "summary"]
    answers = study.folder.report / "answers.json"
    answers.write_text(answers.read_text() + "\n")
    assert "0 trials uploaded, 2 complete before" in study.run("sync")
    (after,) = [name for name, run in server.runs.items() if run.job_type == "summary"]
    assert after != before
    assert len(server.runs[after].history) == 1


def test_the_pages_show_the_runs_of_this_folder(troubled: Troubled) -> None:
    study, _, _ = troubled
    assert f"workspace: {study.server.url}/team/normalizer-study?nw=" in study.run("dashboard")
    (group,) = {each.group for each in study.server.runs.values()}
    assert len(study.server.views) == 2
    assert all(f'"value":"{group}"' in view["spec"] for view in study.server.views.values())
    study.check()


def test_sync_gives_up_in_time_where_the_server_takes_no_data(troubled: Troubled) -> None:
    """It answers questions, but not the uploads."""
    study, _, _ = troubled
    kept, study.server.runs = study.server.runs, {}
    study.server.fault, study.server.faulty = 500, "file_stream"
    started = time.monotonic()
    printed = study.run("sync", code=1)
    for run in study.server.runs.values():  # of which this machine has trained none
        assert "wandb-metadata.json" not in run.files
        assert "e" not in run.config["_wandb"]["value"]
    study.server.fault, study.server.faulty, study.server.runs = None, "", kept
    assert time.monotonic() - started < 120
    assert printed.count("not uploaded: the server did not take the data") == len(list(study.folder.trials()))
    assert "Traceback" not in printed


def test_a_trial_that_is_still_training_is_skipped(troubled: Troubled, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _, _ = troubled
    monkeypatch.setattr(syncing, "ask_server", lambda _: Connection(mode="online"))
    monkeypatch.setattr(syncing, "list_runs", lambda *_: {})
    monkeypatch.setattr(syncing, "is_summary_uploaded", lambda *_: True)
    first, second = study.folder.trials()
    with first.lock(), second.lock():
        result = syncing.sync(study.folder, read_study_file(study.folder.config).study)
    assert (result.training, result.uploaded) == ([first.key, second.key], [])


def test_a_damaged_trial_is_not_uploaded(troubled: Troubled, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _, _ = troubled
    monkeypatch.setattr(syncing, "ask_server", lambda _: Connection(mode="online"))
    monkeypatch.setattr(syncing, "list_runs", lambda *_: study.server.runs)
    monkeypatch.setattr(syncing, "_is_complete", lambda *_: True)
    monkeypatch.setattr(syncing, "is_summary_uploaded", lambda *_: True)
    first, second = study.folder.trials()
    before = first.metrics.read_bytes()
    first.metrics.write_bytes(before[:-1])
    result = syncing.sync(study.folder, read_study_file(study.folder.config).study)
    first.metrics.write_bytes(before)
    assert result.failed == {first.key: "metrics.jsonl: changed since the trial ended"}
    assert (result.uploaded, result.complete) == ([], [second.key])
