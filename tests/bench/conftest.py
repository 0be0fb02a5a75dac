"""Fixtures of the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.cli.main import main

RunBench = Callable[[str], dict[str, Any]]


@pytest.fixture
def run_bench(tmp_path: Path) -> RunBench:
    """Runs a benchmark in this process with --quick; returns the JSON that it writes."""

    def run(name: str) -> dict[str, Any]:
        file = tmp_path / "result.json"
        assert main(["bench", name, "--quick", "--json", str(file)]) == 0
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result

    return run
