"""The driver with 10,000 trials of which 1,000 run at a time, on an engine that only sleeps and leaves records.

No cluster and no training: the records are made beforehand, and a trial's end is the renaming of its folder into place.
Three runs of the real driver, each a process of its own:

- in haste: trials that take no time. How many records a second the driver takes in is its own speed, less what the
  engine's renaming took.
- in time: trials of 10 s, 1,000 at a time, 100 a second. How busy the driver is, and how long after its end a trial is
  taken in.
- again: the same command on the finished study. How long a driver needs to notice what is done.
"""

from __future__ import annotations

import heapq
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import study
from study.bench.result import Figure, Result
from study.bench.speed.scale import describe_study, make_records
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from study.sweep.driver import Driver

TRIALS, AT_ONCE, SECONDS = 10_000, 1_000, 10.0
QUICK_TRIALS, QUICK_AT_ONCE, QUICK_SECONDS = 60, 10, 0.5
RATE_BAR, MEMORY_BAR, DELAY_BAR = 200.0, 1000.0, 1.05
DRIVE = "import sys; from study.bench.speed.driver import drive; drive(*sys.argv[1:])"


class SleepingExecutor:
    """At most `places` trials at once; each leaves its record `seconds` after its start, give or take a half."""

    outlives_driver = False

    def __init__(self, places: int, seconds: float, source: StudyFolder) -> None:
        self.places = self.limit = places
        self.seconds, self.source = seconds, source
        self.random = random.Random(0)  # noqa: S311
        self.due: list[tuple[float, str, Path]] = []
        self.asleep = self.renaming = 0.0
        self.durations: list[float] = []
        self.lags: list[float] = []

    def reattach(self, keys: Collection[str]) -> set[str]:
        """None."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Notes when each will end."""
        for job in jobs:
            self.durations.append(self.seconds * self.random.uniform(0.5, 1.5))
            end = time.monotonic() + self.durations[-1]
            heapq.heappush(self.due, (end, job.trial.key, job.folder))

    def wait(self, seconds: float) -> dict[str, str]:
        """Sleeps until the first is due, and leaves the records of all that are."""
        started = time.monotonic()
        time.sleep(min(max(0.0, self.due[0][0] - started), seconds) if self.due else seconds)
        woken = time.monotonic()
        ended = {}
        while self.due and self.due[0][0] <= woken:
            end, key, folder = heapq.heappop(self.due)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.source.path / folder.relative_to(folder.parents[2]), folder)
            self.lags.append(woken - end)
            ended[key] = "has ended"
        self.asleep += woken - started
        self.renaming += time.monotonic() - woken
        return ended

    def cancel(self) -> None:
        """Forgets them."""
        self.due.clear()

    def close(self) -> None:
        """Nothing is left running."""


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Runs the driver three times. Trains nothing: threads and device do not act."""
    trials, at_once, seconds = (
        (QUICK_TRIALS, QUICK_AT_ONCE, QUICK_SECONDS) if quick else (TRIALS, AT_ONCE, SECONDS)
    )  # fmt: skip
    result = Result("driver")
    runs = {}
    with tempfile.TemporaryDirectory(prefix="study-driver-") as scratch:
        file = describe_study(Path(scratch), trials)
        source, out = StudyFolder(Path(scratch) / "records"), StudyFolder(Path(scratch) / "runs" / file.stem)
        make_records(source, load_study(str(file)))
        runs["in haste"] = _drive(file, out, source, at_once, 0.0)
        _put_back(out, source)
        runs["in time"] = _drive(file, out, source, at_once, seconds)
        runs["again"] = _drive(file, out, source, at_once, 0.0)
    result.rows = [{"run": name, **facts} for name, facts in runs.items()]
    bars = (None, None, None) if quick else (RATE_BAR, MEMORY_BAR, DELAY_BAR)
    result.figures = [
        Figure("records taken in a second", runs["in haste"]["records/s"], bars[0], at_least=True),
        Figure("MB of memory", max(facts["MB"] for facts in runs.values()), bars[1]),
        Figure(f"wall time with trials of {seconds:g} s / that of a driver that costs nothing",
               runs["in time"]["wall s"] / runs["in time"]["least s"], bars[2]),
    ]  # fmt: skip
    result.notes.append(
        f"{trials:,} trials, {at_once:,} at a time. Own seconds: those in which the driver neither sleeps nor renames; "
        "busy: their share; least: of a driver that costs nothing; lag: the longest from a trial's end to a look."
    )
    return result


def drive(file: str, out: str, source: str, at_once: str, seconds: str) -> None:
    """The process of one run; prints what it took as JSON."""
    begun = time.monotonic()
    config = load_study(file, overrides=["tracking.mode=disabled"])
    executor = SleepingExecutor(int(at_once), float(seconds), StudyFolder(Path(source)))
    trials = len(plan_trials(config))
    planned = time.monotonic()
    Driver(
        study=config, folder=StudyFolder(Path(out)), executor=executor, environment={"host": ""},
        console=Console(file=io.StringIO()), command_for=lambda trial: "",
    ).run()  # fmt: skip
    wall = time.monotonic() - planned
    own = wall - executor.asleep - executor.renaming
    lags = sorted(executor.lags)
    print(json.dumps({
        "trials": trials, "wall s": wall, "plan s": planned - begun, "own s": own, "records/s": trials / own,
        "busy": own / wall, "least s": _least_time(executor.durations, executor.places),
        "lag s": lags[-1] if lags else None,
        "MB": _peak_memory() / 1e6,
    }))  # fmt: skip


def _least_time(durations: Sequence[float], places: int) -> float:
    """Seconds that the trials take in this order on so many places, each started when a place is free."""
    free = [0.0] * places
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _put_back(out: StudyFolder, source: StudyFolder) -> None:
    shutil.rmtree(source.path / "trials")
    os.rename(out.path / "trials", source.path / "trials")
    shutil.rmtree(out.path)


def _drive(file: Path, out: StudyFolder, source: StudyFolder, at_once: int, seconds: float) -> dict[str, Any]:
    package = Path(study.__file__).parents[1]
    command = [sys.executable, "-c", DRIVE, str(file), str(out.path), str(source.path), str(at_once), str(seconds)]
    facts: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, cwd=package, check=True).stdout)  # noqa: S603
    return facts


def _peak_memory() -> float:
    """Bytes. Not the resource usage of the process, which on Linux is no less than that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * float(status.read_text().partition("VmHWM:")[2].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
