"""Runs the benchmark of faults as a user does. Each launcher has its own test file, so that they run in parallel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def run_command(*arguments: str) -> None:
    """Runs the command line in a process of its own: clusters keep state in the process that uses them."""
    command = [sys.executable, str(ROOT / "run_study.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def inject(path: Path, *arguments: str, run: Callable[..., object] = run_command) -> dict[str, Any]:
    """Runs the benchmark; checks that each fault was injected and nothing is wrong, and returns the JSON."""
    file = path / "faults.json"
    run("bench", "faults", "--quick", "--json", str(file), "--out", str(path), *arguments)
    result: dict[str, Any] = json.loads(file.read_text())
    assert all(figure["met"] for figure in result["figures"]), result
    assert all(row["injected"] == 1 for row in result["rows"][:-1]), result
    assert not list(path.glob("faults-*"))  # deleted
    return result
