"""The process that `bench driver` measures: the driver of a study with an executor that trains nothing."""

from __future__ import annotations

import heapq
import io
import json
import os
import random
import resource
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console

from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from study.sweep.driver import Driver


def run_driver(file: str, out: str, source: str, places: str, seconds: str) -> None:
    """Runs the driver in this process and prints what it took, as JSON."""
    started = time.monotonic()
    config = load_study(file, overrides=["tracking.mode=disabled"])
    executor = SleepingExecutor(int(places), float(seconds), StudyFolder(Path(source)))
    trials = len(plan_trials(config))
    planned = time.monotonic()
    Driver(
        study=config, folder=StudyFolder(Path(out)), executor=executor, environment={"host": ""},
        console=Console(file=io.StringIO()), command_for=lambda trial: "",
    ).run()  # fmt: skip
    wall = time.monotonic() - planned
    own = wall - executor.slept - executor.renamed
    print(json.dumps({
        "trials": trials, "wall s": wall, "plan s": planned - started, "own s": own, "records/s": trials / own,
        "busy": own / wall, "least s": _compute_least_time(executor.durations, executor.places),
        "lag s": max(executor.lags, default=None),
        "MB": _read_peak_memory() / 1e6,
    }))  # fmt: skip


class SleepingExecutor:
    """Executor of at most `places` trials at once, each of which leaves its record after 0.5 to 1.5 times `seconds`.

    slept, renamed: seconds that `wait` has spent on each. lags: how late each end was noticed, in seconds.
    """

    outlives_driver = False

    def __init__(self, places: int, seconds: float, source: StudyFolder) -> None:
        self.places = places
        self.seconds, self.source = seconds, source
        self.random = random.Random(0)  # noqa: S311
        self.due: list[tuple[float, str, Path]] = []
        self.slept = self.renamed = 0.0
        self.durations: list[float] = []
        self.lags: list[float] = []

    @property
    def free(self) -> int:
        """Number of trials that it takes now."""
        return self.places - len(self.due)

    def reattach(self, keys: Collection[str]) -> set[str]:
        """None: trials do not outlive their driver."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Draws when each trial will end."""
        for job in jobs:
            self.durations.append(self.seconds * self.random.uniform(0.5, 1.5))
            end = time.monotonic() + self.durations[-1]
            heapq.heappush(self.due, (end, job.trial.key, job.folder))

    def wait(self, seconds: float) -> dict[str, str]:
        """Sleeps until the first trial ends, and puts the records of all that have ended into place."""
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
        self.slept += woken - started
        self.renamed += time.monotonic() - woken
        return ended

    def count_waiting(self) -> dict[str, int]:
        """Returns nothing: all trials run."""
        return {}

    def cancel(self) -> None:
        """Ends all trials."""
        self.due.clear()

    def close(self) -> None:
        """Does nothing: no process is running."""


def _compute_least_time(durations: Sequence[float], places: int) -> float:
    """Seconds that trials of these durations take when each starts, in this order, as soon as a place is free."""
    free = [0.0] * places
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def _read_peak_memory() -> float:
    """Peak memory of this process in bytes. On Linux, ru_maxrss is not used: it also covers the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * float(status.read_text().partition("VmHWM:")[2].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
