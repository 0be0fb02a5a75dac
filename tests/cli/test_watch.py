"""`status` and `status --watch`, from the records of a study that something else runs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from study.bench.synthetic_records import Truth, write_study
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder
from tests.cli.conftest import NAME, STUDY, write_failed
from tests.conftest import ROOT, Command

FLAGS = (*STUDY, "--set", "replicates=2", "--set", "tracking.mode=disabled")


def write_half(study: StudyConfig, path: Path) -> StudyFolder:
    """Records of the four trials with `sn`."""
    folder = StudyFolder(path / NAME)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    return folder


def fail_others(study: StudyConfig, folder: StudyFolder) -> None:
    """Has the four trials with `bn` fail."""
    for number, trial in enumerate(trial for trial in plan_trials(study) if trial.config.norm == "bn"):
        write_failed(folder.trial(trial.trial_id, trial.replicate), f"MemoryError: {number} MiB")


def test_watch_without_a_terminal_prints_a_block_and_ends_when_nothing_is_left(
    study: StudyConfig, tmp_path: Path, command: Command
) -> None:
    folder = write_half(study, tmp_path)
    fail_others(study, folder)
    watched = command("status", "--watch", *FLAGS, "--out", str(tmp_path))
    assert watched.code == 1  # some failed
    assert watched.out.count("4 of 8 trials have a result") == 1
    assert "4 failed: MemoryError: 0 MiB (bn-" in watched.out
    assert "nothing is left to do" in watched.out
    assert watched.out.count("answers after 4 trials") == 1
    assert "\x1b" not in watched.out
    status = command("status", *FLAGS, "--out", str(tmp_path))
    assert "4 failed: MemoryError: 0 MiB (bn-" in status.out


def test_watch_ends_with_0_when_every_trial_has_a_result(study: StudyConfig, tmp_path: Path, command: Command) -> None:
    write_study(StudyFolder(tmp_path / NAME), study, Truth())
    watched = command("status", "--watch", *FLAGS, "--out", str(tmp_path))
    assert (watched.code, watched.out.count("8 of 8 trials have a result")) == (0, 1)
    assert "answers after 8 trials" in watched.out  # what is shown last has the answers of all results


def test_watch_on_a_terminal_follows_the_records_and_ctrl_c_leaves_it_clean(study: StudyConfig, tmp_path: Path) -> None:
    folder = write_half(study, tmp_path)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_study.py"), "status", "--watch", *FLAGS, "--out", str(tmp_path)],
        stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True, cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm", "PYTHONPATH": ""},
    )  # fmt: skip
    os.close(slave)
    printed = read_until(master, "4 of 8 trials have a result", "no driver is running")
    fail_others(study, folder)
    record = next(folder.trials())  # this one was interrupted, and can be resumed
    write_json(record.state, {"state": "interrupted", "attempt": 1, "reason": "SIGTERM after step 3"})
    printed += read_until(master, "3 failed", "1 stale", "SIGTERM after step 3")
    printed += read_until(master, "answers after 4 trials", ": interim")
    process.send_signal(signal.SIGINT)
    printed += read_until(master, "\x1b[?25h")
    assert process.wait(timeout=20) == 130
    os.close(master)
    assert "Traceback" not in printed


def read_until(master: int, *parts: str, seconds: float = 60.0) -> str:
    printed, deadline = "", time.monotonic() + seconds
    while not all(part in printed for part in parts):
        assert time.monotonic() < deadline, printed
        printed += os.read(master, 65536).decode(errors="replace")
    return printed


def test_watch_through_a_pipe_prints_each_screen_at_once(study: StudyConfig, tmp_path: Path) -> None:
    write_half(study, tmp_path)
    command = [sys.executable, str(ROOT / "run_study.py"), "status", "--watch", *FLAGS, "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("4 of 8 trials have a result" in line for line in process.stdout)
        assert process.poll() is None  # it continues: four trials are planned
        process.terminate()
