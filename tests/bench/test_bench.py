"""The frame of the benchmarks: fair timing, bars that can be missed, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from study.bench import timing
from study.bench.result import Figure
from study.bench.timing import alternate, ratio
from study.cli.main import main
from tests.conftest import ROOT


def test_contenders_alternate_and_slow_periods_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which one contender takes twice as long as the other, and everything ever longer."""
    now, load = 0.0, 1.0

    def spend(seconds: float) -> None:
        nonlocal now, load
        now += seconds * load
        load *= 1.01

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    times = alternate({"one": lambda: spend(1), "two": lambda: spend(2)}, seconds=0.1, rounds=21)
    assert [len(rounds) for rounds in times.values()] == [21, 21]
    assert times["one"][-1] > 1.3 * times["one"][0]
    assert ratio(times, "two", "one") == pytest.approx(2.0, abs=0.03)


def test_bars_are_met_or_missed() -> None:
    assert Figure("cost", 1.0, 1.0).met
    assert not Figure("cost", 1.01, 1.0).met
    assert Figure("gain", 5.0, 5.0, at_least=True).met
    assert not Figure("gain", 4.9, 5.0, at_least=True).met
    assert Figure("only told", 4.9).met is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["norm"], ["norm: unknown benchmark", "nearest: norms"]),
        (["norms", "--threads", "0"], ["--threads 0", "at least 1"]),
        (["norms", "--device", "tpu"], ["--device", "cpu"]),
        (["norms", "--fast"], ["--fast"]),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts)


def test_the_verb_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("norms", "step", "trial", "scale"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "step"])
def test_quick_mode_measures_everything(tmp_path: Path, name: str) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "study.bench", name, "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["machine"] in done.stdout
    assert result["environment"]["versions"]["torch"]
    for row in result["rows"]:
        assert all(row[norm] > 0 for norm in ("bn", "sn", "ssn", "sn plain"))
    bars = [figure for figure in result["figures"] if figure["bar"] is not None]
    assert bars
    assert all(figure["value"] > 0 for figure in result["figures"])
    hardened = [figure for figure in result["figures"] if figure["name"].startswith("hardened / sn")]
    assert len(hardened) == (2 if name == "step" else 0)
