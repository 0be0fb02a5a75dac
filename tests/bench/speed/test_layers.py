"""The benchmarks of layers and of training steps measure everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import RunBench
from tests.conftest import ROOT


def assert_all_measured(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert all(row[norm] > 0 for norm in ("bn", "sn", "ssn", "sn plain"))
    assert any(figure["bar"] is not None for figure in result["figures"])
    assert all(figure["value"] > 0 for figure in result["figures"])


@pytest.mark.slow
def test_norms(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "study.bench", "norms", "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["machine"] in done.stdout
    assert result["environment"]["versions"]["torch"]
    assert_all_measured(result)
    assert any(figure["name"].startswith("peak memory") for figure in result["figures"])


@pytest.mark.slow
def test_step(run_bench: RunBench) -> None:
    result = run_bench("step")
    assert_all_measured(result)
    assert sum(figure["name"].startswith("hardened / sn") for figure in result["figures"]) == 2
