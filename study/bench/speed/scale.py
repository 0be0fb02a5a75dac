"""`plan`, `status` and `report` on synthetic studies of up to 10,000 finished trials.

Each verb is timed as a fresh process from start to end, the fastest of a few rounds, with the records in the file
cache. `plan` is the planning alone, without the cost estimate, which trains and does not depend on the records.

The growth exponent is the slope, on logarithmic axes, of marginal processor time between the two largest studies; an
exponent of 1 is linear growth. Marginal means that the time of the smallest study is subtracted, because Python and its
libraries take the same time to start in every study. Processor time depends less than wall time on other programs. No
exponent is given where the second largest study takes hardly longer than the smallest.
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
# Number of trials (cells times replicates), and the number of levels of each factor.
SHAPES = {
    20:     (2, 2, 1, 1, 1, 1),
    100:    (2, 2, 5, 1, 1, 1),
    500:    (2, 2, 5, 5, 1, 1),
    1_000:  (2, 2, 5, 5, 2, 1),
    10_000: (2, 2, 5, 5, 5, 4),
}  # fmt: skip
SIZES, QUICK_SIZES = [100, 500, 1_000, 10_000], [20]
DIVERGED_PERCENT = 1

VERBS = ("plan", "status", "report")
SECONDS_BARS = {"status": 5.0, "report": 60.0}  # at the largest size
EXPONENT_BAR = 1.1
RESOLUTION = 0.1  # seconds; smaller marginal costs are noise
PAGE_TRIALS, PAGE_BAR = 500, 10.0  # the bar is on the megabytes of report.html of a study with that many trials

PLAN = "import sys; from study.plan.loading import load_study; from study.plan.trials import plan_trials; " \
       "plan_trials(load_study(sys.argv[1]))"  # fmt: skip
MAIN = "import sys; from study.cli.main import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a process: wall seconds, processor seconds, peak memory in bytes."""

    seconds: float
    processor: float
    memory: int


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Times the verbs on studies of growing size. Trains nothing, so `threads` and `device` have no effect."""
    sizes, rounds = (QUICK_SIZES, 1) if quick else (SIZES, 2)
    costs: dict[int, dict[str, Cost]] = {}
    result = Result("scale")
    for trials in sizes:
        with tempfile.TemporaryDirectory(prefix="study-scale-") as folder:
            written_in, costs[trials], page = _measure_size(Path(folder), trials, rounds)
        result.rows.append(_build_row(trials, written_in, costs[trials], page))
        if trials == PAGE_TRIALS:
            result.figures.append(Figure(f"MB of report.html, {trials} trials", page / 1e6, PAGE_BAR))
    result.figures += _build_time_figures(costs)
    for verb in () if quick else VERBS:
        exponent = _compute_exponent(costs, verb)
        if exponent is not None:
            result.figures.append(Figure(f"growth exponent of {verb}", exponent, EXPONENT_BAR))
        else:
            result.notes.append(
                f"growth of {verb}: too small to measure; {sizes[-2]:,} records take less than {RESOLUTION} s more "
                f"than {sizes[0]}"
            )
    result.notes.append(
        f"{REPLICATES} replicates per cell; 8 epochs; half of the trials sn with 9 or 15 layers, half bn; "
        f"{DIVERGED_PERCENT} % diverged. Seconds: wall time of a fresh process with its start, fastest of {rounds}. "
        "us: the same per record, in microseconds. Exponents: of marginal processor time."
    )
    return result


def _measure_size(folder: Path, trials: int, rounds: int) -> tuple[float, dict[str, Cost], int]:
    """Seconds that writing the records took, the cost of every verb, and the size of report.html in bytes."""
    file = write_study_file(folder, trials)
    out = StudyFolder(folder / "runs" / file.stem)
    started = time.perf_counter()
    write_records(out, load_study(str(file)))
    written_in = time.perf_counter() - started
    flags = ["--study", str(file), "--out", str(out.path.parent)]
    commands = {"plan": [PLAN, str(file)], "status": [MAIN, "status", *flags], "report": [MAIN, "report", *flags]}
    costs = {verb: _measure_fastest(command, rounds) for verb, command in commands.items()}
    return written_in, costs, (out.report / "report.html").stat().st_size


def _build_row(trials: int, written_in: float, costs: dict[str, Cost], page: int) -> dict[str, Any]:
    return {
        "records": trials, "made in s": written_in,
        **{f"{verb} s": costs[verb].seconds for verb in VERBS},
        **{f"{verb} us": 1e6 * costs[verb].seconds / trials for verb in VERBS},
        "report MiB": costs["report"].memory / 2**20, "report.html MB": page / 1e6,
    }  # fmt: skip


def _build_time_figures(costs: dict[int, dict[str, Cost]]) -> list[Figure]:
    """Seconds on the largest study. The bars hold for 10,000 records only."""
    largest = max(costs)
    bars = SECONDS_BARS if largest == SIZES[-1] else dict.fromkeys(SECONDS_BARS)
    return [
        Figure(f"seconds of {verb}, {largest} records", costs[largest][verb].seconds, bar) for verb, bar in bars.items()
    ]


def _compute_exponent(costs: dict[int, dict[str, Cost]], verb: str) -> float | None:
    """Slope of log marginal cost over log marginal records between the two largest studies; None if it is noise."""
    smallest, *_, large, largest = sorted(costs)
    spent = {trials: costs[trials][verb].processor - costs[smallest][verb].processor for trials in (large, largest)}
    if spent[large] < RESOLUTION:
        return None
    return math.log(spent[largest] / spent[large]) / math.log((largest - smallest) / (large - smallest))


def write_study_file(folder: Path, trials: int) -> Path:
    """Writes the YAML of a study with that many trials, of 8 epochs, on the base of the laptop scale."""
    factors = {name: LEVELS[name][:count] for name, count in zip(LEVELS, SHAPES[trials], strict=True) if count > 1}
    file = folder / f"scale-{trials}.yaml"
    content = {
        "title": f"{trials} trials", "question": "How long?", "factors": factors, "replicates": REPLICATES,
        "base": {"epochs": 8, "fixed_gradient_batch": None},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def write_records(folder: StudyFolder, config: StudyConfig) -> None:
    """Writes a record per trial.

    sn is better than bn, and B and depth change the choice, so that the questions have answers.
    """
    truth = Truth(
        accuracy=lambda trial: 0.93 if trial.config.norm == "sn" else 0.90,
        bn_logit=lambda trial: math.log2(trial.config.batch_size) / 3 + (trial.config.depth == 14),
    )
    write_study(folder, config, truth, diverged=lambda trial: zlib.crc32(trial.key.encode()) % 100 < DIVERGED_PERCENT)


def _measure_fastest(arguments: Sequence[str], rounds: int) -> Cost:
    """The shortest times and the largest memory of several runs of `python -c ...`."""
    costs = [_measure_process([sys.executable, "-c", *arguments]) for _ in range(rounds)]
    return Cost(
        seconds=min(cost.seconds for cost in costs), processor=min(cost.processor for cost in costs),
        memory=max(cost.memory for cost in costs),
    )  # fmt: skip


def _measure_process(command: Sequence[str]) -> Cost:
    started = time.perf_counter()
    package = Path(study.__file__).parents[1]  # so that `import study` finds this package
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=package)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Cost(seconds=seconds, processor=usage.ru_utime + usage.ru_stime, memory=usage.ru_maxrss * unit)
