"""Completion in the shell, asked as argcomplete's shell code asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.record.layout import StudyFolder
from tests.conftest import ROOT


def _complete(line: str, folder: Path) -> list[str]:
    found = folder / "completions"
    environment = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(found), "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "study"], env=os.environ | environment, check=True, timeout=60)
    return [text.strip() for text in found.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run-study --study depth", ["depth_vs_batch"]),
        ("run-study --study depth_vs_batch --scale sm", ["smoke"]),
        ("run-study --stu", ["--study"]),
        ("run-study sta", ["status"]),
        ("run-study --study distinct --launcher sl", ["slurm"]),
    ],
)
def test_names_are_completed(line: str, found: list[str], tmp_path: Path) -> None:
    assert _complete(line, tmp_path) == found


def test_trials_of_the_study_are_completed(finished: StudyFolder, tmp_path: Path) -> None:
    line = f"run-study --out {finished.path.parent} --study {finished.path.name} show bn-"
    keys = [trial.key for trial in finished.trials()]
    assert sorted(_complete(line, tmp_path)) == sorted(key for key in keys if key.startswith("bn-"))
