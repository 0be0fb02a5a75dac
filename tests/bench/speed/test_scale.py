"""The benchmark of growing studies works from end to end, and reads growth as it says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.bench.speed.scale import LEVELS, REPLICATES, SHAPES, VERBS, Cost, _exponent, _fastest
from tests.conftest import ROOT


def test_quick_measures_every_verb_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "study.bench", "scale", "--quick", "--json", str(tmp_path / "scale.json")],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))
    assert [row["records"] for row in result["rows"]] == [20, 60]
    for row in result["rows"]:
        assert all(row[f"{verb} s"] > 0 for verb in VERBS)
        assert row["report MiB"] > 50
        assert row["report.html MB"] > 4  # plotly is inside
    assert not any((tmp_path / "tmp").glob("study-scale-*"))


def test_the_shapes_make_the_trials() -> None:
    for trials, counts in SHAPES.items():
        assert trials == REPLICATES * math.prod(counts)
        assert all(count <= len(levels) for count, levels in zip(counts, LEVELS.values(), strict=True))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_does_not_see_the_start_up(power: float) -> None:
    costs = {
        records: {"report": Cost(seconds=0, processor=3 + (records - 100) ** power, memory=0)}
        for records in (100, 500, 1_000, 10_000)
    }
    assert _exponent(costs, "report") == pytest.approx(power)


def test_no_exponent_is_read_off_noise() -> None:
    costs = {records: {"plan": Cost(seconds=0, processor=0.5, memory=0)} for records in (100, 1_000, 10_000)}
    assert _exponent(costs, "plan") is None


def test_a_verb_that_fails_is_an_error_and_no_time() -> None:
    with pytest.raises(RuntimeError, match="exit status 2"):
        _fastest(["import sys; sys.exit(2)"], 1)
