"""The benchmark of growing studies measures every verb, and computes growth as it says."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest

from study.bench.speed.scale import LEVELS, REPLICATES, SHAPES, VERBS, Cost, _compute_exponent, _measure_fastest
from tests.bench.conftest import RunBench


def test_quick_measures_every_verb_and_deletes_its_files(
    run_bench: RunBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (row,) = run_bench("scale")["rows"]
    assert row["records"] == 20
    assert all(row[f"{verb} s"] > 0 for verb in VERBS)
    assert row["report MiB"] > 50
    assert row["report.html MB"] > 4  # plotly is inside
    assert not any(tmp_path.glob("study-scale-*"))


def test_the_shapes_make_the_trials() -> None:
    for trials, counts in SHAPES.items():
        assert trials == REPLICATES * math.prod(counts)
        assert all(count <= len(levels) for count, levels in zip(counts, LEVELS.values(), strict=True))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_does_not_depend_on_the_start_up(power: float) -> None:
    costs = {
        records: {"report": Cost(seconds=0, processor=3 + (records - 100) ** power, memory=0)}
        for records in (100, 500, 1_000, 10_000)
    }
    assert _compute_exponent(costs, "report") == pytest.approx(power)


def test_noise_has_no_exponent() -> None:
    costs = {records: {"plan": Cost(seconds=0, processor=0.5, memory=0)} for records in (100, 1_000, 10_000)}
    assert _compute_exponent(costs, "plan") is None


def test_a_verb_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exit status 2"):
        _measure_fastest(["import sys; sys.exit(2)"], 1)
