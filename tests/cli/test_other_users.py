"""A user without rights to a folder: verbs that only read work, and others end in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.bench.synthetic_records import Truth, write_study
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from tests.cli.conftest import NAME, STUDY
from tests.conftest import ROOT

NOBODY = 65534
FLAGS = (*STUDY, "--set", "replicates=2", "--set", "tracking.mode=disabled")
SETPRIV = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

pytestmark = pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root without setpriv")


@pytest.fixture
def locked(study: StudyConfig, tmp_path: Path) -> Iterator[Path]:
    """A folder with a study, `study`, and an empty one, `empty`, that may be read and not written."""
    write_study(StudyFolder(tmp_path / "study" / NAME), study, Truth())
    (tmp_path / "empty").mkdir()
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for parent in (*folders, *tmp_path.parents):
        if parent.owner() in ("root", tmp_path.owner()) and parent.stat().st_uid == os.getuid():
            parent.chmod(0o555 if parent in folders else parent.stat().st_mode | 0o011)
    yield tmp_path
    for folder in folders:
        folder.chmod(0o755)


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of a command of a user who may write nowhere in `place`, which is the home folder, too."""
    other_user = SETPRIV if os.getuid() == 0 else []
    command = [*other_user, sys.executable, str(ROOT / "run_study.py"), *arguments]
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(place / "empty"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env={**os.environ, **homes})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("--out empty/runs", "empty/runs: Permission denied"),
        ("--detach --out empty/runs", "empty/runs: Permission denied"),
        ("--out study", "study/depth_vs_batch: Permission denied"),
        ("report --no-images --out study", "study/depth_vs_batch/report: Permission denied"),
    ],
)
def test_what_cannot_be_written_is_one_line(locked: Path, line: str, where: str) -> None:
    verb = [] if line.startswith("--") else [line.split()[0]]
    code, _, error = run(locked, *verb, *FLAGS, *line.split()[len(verb) :])
    assert (code, error) == (2, f"error: {where}\n")


def test_verbs_that_only_read_need_no_rights_to_write(locked: Path, study: StudyConfig) -> None:
    first, second, *_ = plan_trials(study)
    for line in ("status", f"show {first.key}", f"diff {first.key} {second.key}"):
        code, out, error = run(locked, *line.split(), *FLAGS, "--out", "study")
        assert (code, error.count("error")) == (0, 0), error
        assert out
