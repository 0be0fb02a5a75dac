"""A finished smoke study, trained once, for the tests of the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from tests.conftest import ROOT

NAME = "depth_vs_batch"
STUDY = ("--study", NAME, "--scale", "smoke")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    """A finished smoke study, and what its command printed. For tests that change no file of it."""
    out = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(ROOT / "run_study.py"), *STUDY, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return StudyFolder(out / NAME), done.stdout


@pytest.fixture
def finished(trained: tuple[StudyFolder, str], tmp_path: Path) -> StudyFolder:
    """A copy of the finished smoke study in `tmp_path/runs`."""
    copy = StudyFolder(tmp_path / "runs" / NAME)
    shutil.copytree(trained[0].path, copy.path, symlinks=True)
    return copy


@pytest.fixture
def study() -> StudyConfig:
    """Two replicates of the smoke study: four trials with `sn`, four with `bn`."""
    return load_study(NAME, "smoke", ["replicates=2", "tracking.mode=disabled"])


def find_trial(folder: StudyFolder, norm: str, batch_size: int) -> TrialFolder:
    """The only trial of a cell."""
    (found,) = folder.path.glob(f"trials/{norm}-depth8-batch_size{batch_size}-*/r0")
    return TrialFolder(found)


def write_failed(record: TrialFolder, reason: str) -> None:
    """Has a trial fail for the last time."""
    write_json(record.state, {"state": "failed", "attempt": 3, "failures": 3, "reason": reason})
