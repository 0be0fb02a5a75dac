"""Fixtures shared by all tests. No test reaches for a network beyond this machine, or for a W&B account."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest_plugins = ["tests.services.fixtures"]

ROOT = Path(__file__).parents[1]
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share the cores, and OpenMP's threads spin as they wait
MEMORY = Path("/dev/shm")  # of Linux; SQLite waits for a disk at every commit
if "TMPDIR" not in os.environ and MEMORY.is_dir():
    about = os.statvfs(MEMORY)
    if about.f_bavail * about.f_frsize > 8 * 2**30 and not about.f_flag & os.ST_NOEXEC:  # containers may have neither
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
os.environ["BROWSER_PATH"] = "none"  # reports without images, which take ten seconds; test_export makes them
HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
SLOW_MARKS = ("slow", "slurm", "ray", "postgres")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves files with slow tests to the front: one that started last would run while other processes have ended."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, SLOW_MARKS))}
    items.sort(key=lambda item: item.path not in slow)


@dataclass(frozen=True)
class Output:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


Command = Callable[..., Output]


@pytest.fixture(autouse=True)
def default_handlers() -> None:
    """A test, and what it starts, has the handlers of a shell's commands, also under nohup, and after other tests."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process, which has imported torch already; give `--out`."""
    from study.cli.main import main

    def run(*arguments: str) -> Output:
        capsys.readouterr()
        code = main(arguments)
        return Output(code, *capsys.readouterr())

    return run


@pytest.fixture
def run_study(tmp_path: Path) -> Run:
    """Runs the command line in a process of its own, with results under `tmp_path/runs`."""

    def run(
        *arguments: str, timeout: float = 300, out: str = str(tmp_path / "runs")
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "run_study.py"), *arguments, "--out", out]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=tmp_path)

    return run
