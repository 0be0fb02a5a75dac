"""What a driver shows while it runs: a live view on a terminal, a line per trial elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from study.cli.progress import SweepProgress
from study.config.schema import StudyConfig
from study.record.layout import StudyFolder, TrialFolder
from tests.sweep.test_driver import FakeExecutor, build_driver


def drive(study: StudyConfig, path: Path, act: Any, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, color_system=None)
    build_driver(study, path, FakeExecutor(act), console).run()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def fail_sn(record: TrialFolder, attempt: int) -> str:
    return f"ValueError: {record.path}" if record.trial_id.startswith("sn") else "done"


def test_a_terminal_shows_counts_and_causes_and_is_left_clean(study: StudyConfig, tmp_path: Path) -> None:
    printed = drive(study, tmp_path, fail_sn, terminal=True)
    assert "4 of 8 trials have a result" in printed
    assert "4 failed: ValueError:" in printed
    assert "validation accuracy" not in printed  # lines per trial are for log files
    assert ": failed: " not in printed
    assert printed.rindex("\x1b[?25h") > printed.rindex("\x1b[?25l")  # the cursor is visible again


def test_a_log_file_has_a_line_per_trial(study: StudyConfig, tmp_path: Path) -> None:
    printed = drive(study, tmp_path, fail_sn, terminal=False)
    done = re.findall(r"^(\d)/8 bn-\S+-r\d: validation accuracy 0\.900, 1 s, about \d s left$", printed, re.MULTILINE)
    assert done == ["1", "2", "3", "4"]
    assert len(re.findall(r"^sn-\S+-r\d: failed: ValueError: .* \(see .*output\.log\)$", printed, re.MULTILINE)) == 4
    assert len(re.findall(r"; trying again$", printed, re.MULTILINE)) == 8
    assert "\x1b" not in printed


@pytest.mark.parametrize("terminal", [True, False])
def test_after_ctrl_c_the_last_line_says_how_far_it_came(study: StudyConfig, tmp_path: Path, terminal: bool) -> None:
    def interrupt(record: TrialFolder, attempt: int) -> str:
        if record.replicate == 1:
            raise KeyboardInterrupt
        return "done"

    one_by_one = study.model_copy(update={"run": study.run.model_copy(update={"fuse": 1})})
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, color_system=None)
    with pytest.raises(KeyboardInterrupt):
        build_driver(one_by_one, tmp_path, FakeExecutor(interrupt), console).run()
    assert isinstance(console.file, io.StringIO)
    assert re.search(r"Stopped at [1-4] of 8 trials with a result\.\n$", console.file.getvalue())


def test_why_trials_wait_in_the_queue_is_shown_now_and_logged_once(study: StudyConfig, tmp_path: Path) -> None:
    output = io.StringIO()
    progress = SweepProgress(Console(file=output, width=200), StudyFolder(tmp_path))
    for waiting in ({"PENDING (Priority)": 3}, {"PENDING (Priority)": 2, "PENDING (PartitionDown)": 1}, {}):
        progress.waiting(waiting)
        assert progress.observer.take_snapshot().waiting == waiting
    assert output.getvalue().splitlines() == [
        "in the queue: 3 trials PENDING (Priority)", "in the queue: 1 trial PENDING (PartitionDown)"
    ]  # fmt: skip
