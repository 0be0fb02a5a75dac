"""`plan`, `status` and `report` on synthetic studies of up to 10,000 finished trials.

A verb is timed as a user waits for it: a fresh process from its start to its end, the fastest of a few rounds, with the
records in the file cache. `plan` stands for the planning alone: its forecast trains, and does not grow with records.

How time grows is read off the marginal cost: Python and its libraries start at the same price in every study, so the
time of the smallest is taken off those of the two largest before their slope on logarithmic axes is taken. An exponent
of 1 is linear. It is taken of processor time, which other programs on the machine change less than they change seconds,
and only where the second largest study costs measurably more than the smallest.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import study
from study.bench.result import Figure, Result
from study.bench.synthetic_records import Truth, write_study
from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.record.layout import StudyFolder

LEVELS: dict[str, list[Any]] = {
    "norm": ["sn", "bn"],
    "depth": [8, 14],
    "batch_size": [2, 4, 8, 16, 32],
    "initialization": ["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal"],
    "decay": ["cosine", "step", "poly", "linear", "constant"],
    "solver": ["sgd", "nesterov", "adam", "adamw"],
}
REPLICATES = 5
# Trials, and how many levels of each factor make them: cells times replicates.
SHAPES = {
    20:     (2, 2, 1, 1, 1, 1),
    60:     (2, 2, 3, 1, 1, 1),
    100:    (2, 2, 5, 1, 1, 1),
    500:    (2, 2, 5, 5, 1, 1),
    1_000:  (2, 2, 5, 5, 2, 1),
    10_000: (2, 2, 5, 5, 5, 4),
}  # fmt: skip
FULL, QUICK = (100, 500, 1_000, 10_000), (20, 60)
DIVERGED = 1  # % of the trials

VERBS = ("plan", "status", "report")
SECONDS = {"status": 5.0, "report": 60.0}  # bars at the largest size
EXPONENT = 1.1
RESOLUTION = 0.1  # seconds; marginal costs below it are noise
PAGE = (500, 10.0)  # trials, and the bar on the megabytes of their report.html

PLAN = "import sys; from study.plan.loading import load_study; from study.plan.trials import plan_trials; " \
       "plan_trials(load_study(sys.argv[1]))"  # fmt: skip
MAIN = "import sys; from study.cli.main import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took: wall seconds, processor seconds, peak memory in bytes."""

    seconds: float
    processor: float
    memory: int


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Times the verbs that read a study, on studies of growing size. Trains nothing: threads and device do not act."""
    sizes, rounds = (QUICK, 1) if quick else (FULL, 2)
    costs: dict[int, dict[str, Cost]] = {}
    result = Result("scale")
    for trials in sizes:
        with tempfile.TemporaryDirectory(prefix="study-scale-") as folder:
            making, costs[trials], page = _measure_size(Path(folder), trials, rounds)
        result.rows.append(_row(trials, making, costs[trials], page))
        if trials == PAGE[0]:
            result.figures.append(Figure(f"MB of report.html, {trials} trials", page / 1e6, PAGE[1]))
    result.figures += _time_figures(costs)
    exponents = {verb: _exponent(costs, verb) for verb in VERBS if not quick}
    result.figures += [
        Figure(f"growth exponent of {verb}", value, EXPONENT) for verb, value in exponents.items() if value is not None
    ]
    result.notes += [
        f"growth of {verb}: too cheap to tell; {sizes[-2]:,} records cost less than {RESOLUTION} s more than {sizes[0]}"
        for verb, value in exponents.items() if value is None
    ]  # fmt: skip
    result.notes.append(
        f"{REPLICATES} replicates a cell; 8 epochs; half of the trials sn with 9 or 15 layers, half bn; {DIVERGED} % "
        f"diverged. Seconds are those of a fresh process, its start included, the fastest of {rounds}; us are seconds "
        "over records; exponents are of marginal processor time."
    )
    return result


def _measure_size(folder: Path, trials: int, rounds: int) -> tuple[float, dict[str, Cost], int]:
    """Seconds that making the records took, the cost of every verb, and the bytes of the report's page."""
    file = describe_study(folder, trials)
    out = StudyFolder(folder / "runs" / file.stem)
    started = time.perf_counter()
    make_records(out, load_study(str(file)))
    making = time.perf_counter() - started
    flags = ["--study", str(file), "--out", str(out.path.parent)]
    commands = {"plan": [PLAN, str(file)], "status": [MAIN, "status", *flags], "report": [MAIN, "report", *flags]}
    costs = {verb: _fastest(command, rounds) for verb, command in commands.items()}
    return making, costs, (out.report / "report.html").stat().st_size


def _row(trials: int, making: float, costs: dict[str, Cost], page: int) -> dict[str, Any]:
    return {
        "records": trials, "made in s": making,
        **{f"{verb} s": costs[verb].seconds for verb in VERBS},
        **{f"{verb} us": 1e6 * costs[verb].seconds / trials for verb in VERBS},
        "report MiB": costs["report"].memory / 2**20, "report.html MB": page / 1e6,
    }  # fmt: skip


def _time_figures(costs: dict[int, dict[str, Cost]]) -> list[Figure]:
    """Seconds on the largest study; the bars are for 10,000 records."""
    largest = max(costs)
    bars = SECONDS if largest == FULL[-1] else dict.fromkeys(SECONDS)
    return [
        Figure(f"seconds of {verb}, {largest} records", costs[largest][verb].seconds, bar) for verb, bar in bars.items()
    ]


def _exponent(costs: dict[int, dict[str, Cost]], verb: str) -> float | None:
    """Slope of log marginal cost over log marginal records, between the two largest studies; None below noise."""
    smallest, *_, large, largest = sorted(costs)
    spent = {trials: costs[trials][verb].processor - costs[smallest][verb].processor for trials in (large, largest)}
    if spent[large] < RESOLUTION:
        return None
    return math.log(spent[largest] / spent[large]) / math.log((largest - smallest) / (large - smallest))


def describe_study(folder: Path, trials: int) -> Path:
    """The YAML of a study with that many trials, on the base of the laptop scale."""
    factors = {name: LEVELS[name][:count] for name, count in zip(LEVELS, SHAPES[trials], strict=True) if count > 1}
    file = folder / f"scale-{trials}.yaml"
    content = {"title": f"{trials} trials", "question": "How long?", "factors": factors, "replicates": REPLICATES}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def make_records(folder: StudyFolder, config: StudyConfig) -> None:
    """With sn a gain over bn, and B and depth that move its choice: the verdicts have something to say."""
    truth = Truth(
        accuracy=lambda trial: 0.93 if trial.config.norm == "sn" else 0.90,
        bn_logit=lambda trial: math.log2(trial.config.batch_size) / 3 + (trial.config.depth == 14),
    )
    write_study(folder, config, truth, diverged=lambda trial: zlib.crc32(trial.key.encode()) % 100 < DIVERGED)


def _fastest(arguments: Sequence[str], rounds: int) -> Cost:
    """The least of several rounds of `python -c ...`, and the most memory."""
    costs = [_run([sys.executable, "-c", *arguments]) for _ in range(rounds)]
    return Cost(
        seconds=min(cost.seconds for cost in costs), processor=min(cost.processor for cost in costs),
        memory=max(cost.memory for cost in costs),
    )  # fmt: skip


def _run(command: Sequence[str]) -> Cost:
    started = time.perf_counter()
    package = Path(study.__file__).parents[1]  # the package that runs now, wherever the user is
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=package)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds=seconds, processor=usage.ru_utime + usage.ru_stime, memory=usage.ru_maxrss * unit)
