"""What all benchmarks share: the command line, timing in turns, and bars."""

from __future__ import annotations

import importlib
import inspect
import re
import time

import pytest

from study.bench.__main__ import BENCHMARKS
from study.bench.result import Figure
from study.bench.timing import median_ratio, time_in_turns
from study.cli.main import main


def test_contenders_take_turns_and_slow_periods_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which one contender takes twice as long as the other, and everything slows down."""
    now, load = 0.0, 1.0

    def spend(seconds: float) -> None:
        nonlocal now, load
        now += seconds * load
        load *= 1.01

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    times = time_in_turns({"one": lambda: spend(1), "two": lambda: spend(2)}, seconds=0.1, rounds=21)
    assert [len(rounds) for rounds in times.values()] == [21, 21]
    assert times["one"][-1] > 1.3 * times["one"][0]
    assert median_ratio(times, "two", "one") == pytest.approx(2.0, abs=0.03)


def test_bars_are_met_or_missed() -> None:
    assert Figure("cost", 1.0, 1.0).met
    assert not Figure("cost", 1.01, 1.0).met
    assert Figure("gain", 5.0, 5.0, at_least=True).met
    assert not Figure("gain", 4.9, 5.0, at_least=True).met
    assert Figure("without a bar", 4.9).met is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["norm"], ["norm: unknown benchmark", "nearest: norms"]),
        *((["norms", "--threads", n], [f"--threads {n}: expected a whole number from 1 to 1024"]) for n in ("0", "02")),
        (["norms", "--device", "tpu"], ["--device", "cpu"]),
        (["norms", "--fast"], ["--fast"]),
        (["norms", "--launcher", "slurm"], ["--launcher: not a flag of norms", "only faults"]),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts)


def test_without_a_name_all_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed and benchmark.help in printed for name, benchmark in BENCHMARKS.items())
    assert not re.search(r"--(?!help)", printed)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_help_of_a_benchmark_shows_its_own_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--help"]) == 0
    printed = capsys.readouterr().out
    shown = re.findall(r"^  (?:-h, )?(--[a-z-]+)", printed, re.MULTILINE)
    assert shown == [
        "--help",
        "--quick",
        "--threads",
        "--device",
        "--json",
        *[f for f in shown if f in BENCHMARKS[name].flags],
    ]
    assert set(BENCHMARKS[name].flags) < set(shown)
    assert "only for" not in printed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_called(name: str) -> None:
    module = importlib.import_module(f"study.bench.{BENCHMARKS[name].module}")
    own = {flag.strip("-").replace("-", "_") for flag in BENCHMARKS[name].flags}
    assert set(inspect.signature(module.measure).parameters) == {"quick", "threads", "device", *own}
