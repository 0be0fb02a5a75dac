"""Trials per hour: as a user of Lightning and Optuna would train them, and here, one by one and fused.

All train the same cell of the laptop study, ResNet-8 with sn at B = 2, in as many processes as there are cores. Every
row is the time of a whole sweep from its first trial on; importing torch and Lightning comes before.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from study.bench.result import Figure, Result
from study.bench.speed import plain_harness
from study.bench.speed.trial import run_study
from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.sweep.executors.local import LocalExecutor

SIZES = (1, 2, 4, 8, 16)
FOUR_BAR, EIGHT_BAR, PLAIN_BAR, STUDY_BAR = 2.5, 4.0, 8.0, 3.0
PLAIN, ACCUMULATED = "Lightning + Optuna, plain sn", "the same, gradients accumulated over the chunks"


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Runs one sweep after the other."""
    threads = threads or 1
    workers = max(1, (os.cpu_count() or 1) // threads) if device == "cpu" else 1
    epochs, sizes = (3, SIZES[:4]) if quick else (20, SIZES)
    trials = workers * sizes[-1]
    rates: dict[str, float] = {}
    memory: dict[str, float] = {}
    result = Result("fuse")
    with tempfile.TemporaryDirectory() as scratch:
        for name, count, accumulate in ((PLAIN, 2 * workers, False), (ACCUMULATED, workers, True)):
            folder = Path(scratch) / f"plain-{accumulate}"
            folder.mkdir()
            rates[name] = 3600 * count / plain_harness.run(folder, count, epochs, workers, accumulate, device)
        for size in sizes:
            name = "one by one" if size == 1 else f"fused by {size}"
            executor = LocalExecutor(workers, [device], threads)
            with _peak_memory(executor) as peak:
                seconds = run_study(_load(trials, epochs, size), Path(scratch) / str(size), executor)
            rates[name], memory[name] = 3600 * trials / seconds, peak[0]
        if not quick and device == "cpu":
            result.figures.append(_measure_laptop_study(Path(scratch), workers, threads))
    for name, rate in rates.items():
        result.rows.append({
            "trials": name, "trials per hour": rate, "x one by one": rate / rates["one by one"],
            "x plain": rate / rates[PLAIN], "MB per process": memory.get(name),
        })  # fmt: skip
    result.figures += [
        Figure("fused by 4 / one by one", rates["fused by 4"] / rates["one by one"], FOUR_BAR, at_least=True),
        Figure("fused by 8 / one by one", rates["fused by 8"] / rates["one by one"], EIGHT_BAR, at_least=True),
        Figure(f"fused by 8 / {PLAIN}", rates["fused by 8"] / rates[PLAIN], PLAIN_BAR, at_least=True),
    ]
    result.notes.append(
        f"{trials} trials of {epochs} epochs ({2 * workers} and {workers} of the plain harness), {workers} processes; "
        "without imports, the start of the pool and the report"
    )
    return result


def _load(trials: int, epochs: int, size: int) -> StudyConfig:
    cell = ["norm=sn", "depth=8", "batch_size=2", "initialization=he_normal", f"epochs={epochs}"]
    return load_study(
        "depth_vs_batch", "laptop", [*cell, f"replicates={trials}", f"run.fuse={size}", "tracking.mode=disabled"]
    )


def _measure_laptop_study(scratch: Path, workers: int, threads: int) -> Figure:
    """The study depth_vs_batch as it is shipped, with all trials one by one and fused."""
    seconds = {}
    for fuse in ("1", "auto"):
        study = load_study("depth_vs_batch", "laptop", ["tracking.mode=disabled", f"run.fuse={fuse}"])
        seconds[fuse] = run_study(study, scratch / f"laptop-{fuse}", LocalExecutor(workers, ["cpu"], threads))
    name = f"laptop study, {seconds['1']:.0f} s one by one and {seconds['auto']:.0f} s fused: ratio"
    return Figure(name, seconds["1"] / seconds["auto"], STUDY_BAR, at_least=True)


@contextmanager
def _peak_memory(executor: LocalExecutor) -> Iterator[list[float]]:
    """Yields a list whose item is the peak memory of a process of the executor, in MB; 0 where Linux's /proc is not."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for training in [*executor.running]:
                peak[0] = max(peak[0], _read_peak(training.process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _read_peak(process: Any) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:  # it has ended
        return 0.0
    return float((status.partition("VmHWM:")[2].split() or ["0"])[0]) / 1e3
