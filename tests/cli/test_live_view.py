"""What a terminal shows of a running study: the picture, failures by cause, the driver's view, `status --watch`."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from study.analysis.report.interim_answers import compute_interim_answers
from study.bench.synthetic_records import Truth, write_study
from study.cli.background import Background
from study.cli.live_view import Running, StudySnapshot, TrialProblem, group_problems, last_epoch, normalize_reason
from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors.resources import count_cores
from tests.conftest import ROOT
from tests.sweep.test_driver import FakeExecutor, build

STUDY = "depth_vs_batch"


@pytest.fixture
def study() -> StudyConfig:
    return load_study(STUDY, "smoke", ["replicates=2", "tracking.mode=disabled"])


def screen(picture: StudySnapshot, width: int, height: int) -> list[str]:
    """The lines that a terminal of that size shows, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    console.print(picture)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def full_picture(path: Path) -> StudySnapshot:
    """Of a study in trouble, with long names."""
    long = "sn-depth14-batch_size16-xavier_uniform-cosine-adamw-0804ffa3"
    effects = [f"+0.012 (0.004 to 0.020, n = 4) validation accuracy, sn - {'sn-uniform[in,ln]' * 3}"]
    questions = [{"name": name, "verdict": "not enough evidence", "effects": effects} for name in ("useful", "impacts")]
    return StudySnapshot(
        name=STUDY, total=400, states={"done": 100, "diverged": 3, "running": 30, "failed": 7, "planned": 260},
        left="about 3 min left",
        troubles=[TrialProblem(key=f"{long}-r{n}", state="failed", reason=f"Error{'ABCDEFG'[n]}: " + "x" * 200)
                  for n in range(7)],
        answers={"n": 103, "confidence": 0.95, "questions": questions},
        running=[Running(record=TrialFolder(path / long / f"r{n}"), epochs=8) for n in range(30)],
    )  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (80, 60), (200, 30)])
def test_the_picture_fits_the_terminal_and_shows_what_matters_first(width: int, height: int, tmp_path: Path) -> None:
    lines = screen(full_picture(tmp_path), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("103 of 400", "7 failed", "useful: not enough", "+0.012 (0.004 to 0.020, n = 4)"):
        assert part in text


def test_as_many_running_trials_as_there_is_room_for(tmp_path: Path) -> None:
    shown = {height: sum("starting" in line for line in screen(full_picture(tmp_path), 80, height)) for height in
             (12, 24, 30, 60)}  # fmt: skip
    assert shown[12] == 0
    assert 0 <= shown[24] < shown[30] <= shown[60] == 10
    assert "and 20 more" in screen(full_picture(tmp_path), 80, 60)[-1]
    assert "0804ffa3-r0" in "\n".join(screen(full_picture(tmp_path), 60, 60))  # a key is cut in the middle


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MemoryError: tried 20.5 MiB of 1e9", "MemoryError: tried 3 MiB of 2e+10"),
        ("OSError: /a/b/r0/x.png: bad", "OSError: /c/d9/y.png: bad"),
        ("it starts from sn-depth8-ea66f2ad-r0, which failed", "it starts from bn-depth14-a10ff5e6-r3, which failed"),
        ("at 0x7f3a", "at 0x11"),
    ],
)
def test_reasons_that_differ_in_numbers_paths_and_names_are_one_cause(one: str, other: str) -> None:
    assert normalize_reason(one) == normalize_reason(other)


def test_other_words_are_another_cause_and_the_most_frequent_comes_first() -> None:
    reasons = ["ValueError: a", "KeyError: b 1", "KeyError: b 2"]
    troubles = [TrialProblem(key=f"t-r{n}", state="failed", reason=reason) for n, reason in enumerate(reasons)]
    groups = group_problems([*troubles, TrialProblem(key="t-r9", state="stale", reason="KeyError: b 3")])
    assert [[trouble.key for trouble in group] for group in groups] == [["t-r1", "t-r2"], ["t-r0"], ["t-r9"]]


def test_the_last_epoch_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_epoch(file) is None
    file.write_text("".join(json.dumps({"epoch": n, "name": "x" * 50}) + "\n" for n in range(1000)) + '{"epoch": 10')
    assert last_epoch(file) == 999


# -------------------------------------------------------------------------------------------------- the driver


def drive_on_terminal(study: StudyConfig, path: Path, act: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    build(study, path, FakeExecutor(act), console).run()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_driver_on_a_terminal_shows_counts_and_leaves_the_terminal_clean(study: StudyConfig, tmp_path: Path) -> None:
    said = drive_on_terminal(study, tmp_path, lambda record, attempt: "done")
    assert "of 8 trials have a result" in said
    assert "validation accuracy" not in said  # a line a trial is for log files
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is back


def test_failures_are_one_line_a_cause_on_a_terminal(study: StudyConfig, tmp_path: Path) -> None:
    said = drive_on_terminal(study, tmp_path, lambda record, attempt: f"ValueError: {record.path}")
    assert "8 failed: ValueError:" in said
    assert ": failed: " not in said


# ------------------------------------------------------------------------------------------ status and --watch


def command(tmp_path: Path, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "run_study.py"), "status", *flags, "--study", STUDY, "--scale", "smoke",
            "--set", "replicates=2", "--set", "tracking.mode=disabled", "--out", str(tmp_path)]  # fmt: skip


def fail(study: StudyConfig, folder: StudyFolder, norm: str) -> int:
    """Has the trials of a norm fail, each with a number of its own; returns how many."""
    trials = [trial for trial in plan_trials(study) if trial.config.norm == norm]
    for number, trial in enumerate(trials):
        state = {"state": "failed", "attempt": 3, "failures": 3, "reason": f"MemoryError: {number} MiB"}
        write_json(folder.trial(trial.trial_id, trial.replicate).state, state)
    return len(trials)


def test_watch_without_a_terminal_prints_a_block_and_ends_when_nothing_is_left(
    study: StudyConfig, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / STUDY)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    assert fail(study, folder, "bn") == 4
    watched = subprocess.run(command(tmp_path, "--watch"), capture_output=True, text=True, timeout=120)
    assert watched.returncode == 1  # some failed
    assert watched.stdout.count("4 of 8 trials have a result") == 1
    assert "4 failed: MemoryError: 0 MiB" in watched.stdout
    assert "\x1b" not in watched.stdout
    status = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=120)
    assert "failed: 4 trials: MemoryError: 0 MiB (the first: bn-" in status.stdout


def test_watch_on_a_terminal_follows_the_records_and_ctrl_c_leaves_it_clean(study: StudyConfig, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / STUDY)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path, "--watch"), stdin=slave, stdout=slave, stderr=slave, close_fds=True,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    said = read_until(master, "4 of 8 trials have a result")
    fail(study, folder, "bn")
    for record in list(folder.trials())[:1]:  # one that goes on
        write_json(record.state, {"state": "interrupted", "attempt": 1, "reason": "SIGTERM after step 3"})
    said += read_until(master, "3 failed", "1 stale", "SIGTERM after step 3")
    said += read_until(master, "answers after 4 trials", ": not enough evidence")
    process.send_signal(signal.SIGINT)
    said += read_until(master, "\x1b[?25h")
    assert process.wait(timeout=20) == 130
    os.close(master)
    assert "Traceback" not in said


def read_until(master: int, *parts: str, seconds: float = 60.0) -> str:
    said, deadline = "", time.monotonic() + seconds
    while not all(part in said for part in parts):
        assert time.monotonic() < deadline, said
        said += os.read(master, 65536).decode(errors="replace")
    return said


# -------------------------------------------------------------------------------------------------- background


def wait_for(background: Background, stamp: object) -> None:
    deadline = time.monotonic() + 60
    while not background.poll(stamp):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_work_beside_a_study_pauses_by_what_it_costs_and_waits_for_news(tmp_path: Path) -> None:
    background = Background("answers", StudyFolder(tmp_path), share=0.02, first=0.0)
    background.command = [sys.executable, "-c", 'print(\'{"result": 7, "seconds": 3}\')']
    wait_for(background, stamp=1)
    assert background.result == 7
    pause = 3 / 0.02 / count_cores()
    assert background.due - time.monotonic() == pytest.approx(pause, abs=1)
    background.due = 0.0
    assert not background.poll(1)
    assert background.process is None  # the same records
    background.poll(2)
    assert background.process is not None
    background.close()
    assert background.process is None


def test_work_that_ends_without_a_word_is_an_error(tmp_path: Path) -> None:
    background = Background("answers", StudyFolder(tmp_path), share=1.0, first=0.0)
    background.command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    wait_for(background, stamp=0)
    assert background.error == "ended with exit code 3"


def test_the_answers_so_far_come_from_the_records(study: StudyConfig, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / STUDY)
    write_study(folder, study, Truth(accuracy=lambda trial: 0.9 if trial.config.norm == "sn" else 0.8))
    answers = compute_interim_answers(folder)
    useful, impacts = answers["questions"]
    assert answers["n"] == 8
    assert (useful["name"], useful["verdict"]) == ("useful", "supported")
    assert re.fullmatch(
        r"\+0\.\d{3} \(0\.\d{3} to 0\.\d{3}, n = 2\) validation accuracy, sn - bn", useful["effects"][0]
    )
    assert impacts["name"] == "impacts"
