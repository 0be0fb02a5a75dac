"""The driver with 10,000 simulated trials, 1,000 at once, on an executor that only sleeps and then writes a record.

Nothing is trained and no cluster is needed: all records are written beforehand, and a trial ends when its folder is
renamed into place. The driver runs three times, each time in a process of its own:

- no pause: trials that take no time. The records that the driver handles per second of its own time, which is the wall
  time without the executor's sleeping and renaming.
- timed: trials of 10 s, 1,000 at a time, which makes 100 per second. How busy the driver is, and how long after its end
  a trial is handled.
- rerun: the same command on the finished study. How long the driver takes to see that all is done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import study
from study.bench.result import Figure, Result
from study.bench.speed.scale import write_records, write_study_file
from study.plan.loading import load_study
from study.record.layout import StudyFolder

TRIALS, PLACES, SECONDS = 10_000, 1_000, 10.0
QUICK_TRIALS, QUICK_PLACES, QUICK_SECONDS = 20, 10, 0.2
RATE_BAR, MEMORY_BAR, DELAY_BAR = 200.0, 1000.0, 1.05
RUN_DRIVER = "import sys; from study.bench.speed.sleeping_executor import run_driver; run_driver(*sys.argv[1:])"


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Runs the driver three times. Trains nothing, so `threads` and `device` have no effect."""
    trials, places, seconds = (
        (QUICK_TRIALS, QUICK_PLACES, QUICK_SECONDS) if quick else (TRIALS, PLACES, SECONDS)
    )  # fmt: skip
    result = Result("driver")
    runs = {}
    with tempfile.TemporaryDirectory(prefix="study-driver-") as scratch:
        file = write_study_file(Path(scratch), trials)
        source, out = StudyFolder(Path(scratch) / "records"), StudyFolder(Path(scratch) / "runs" / file.stem)
        write_records(source, load_study(str(file)))
        runs["no pause"] = _start_driver(file, out, source, places, 0.0)
        _move_records_back(out, source)
        runs["timed"] = _start_driver(file, out, source, places, seconds)
        runs["rerun"] = _start_driver(file, out, source, places, 0.0)
    result.rows = [{"run": name, **facts} for name, facts in runs.items()]
    bars = (None, None, None) if quick else (RATE_BAR, MEMORY_BAR, DELAY_BAR)
    result.figures = [
        Figure("records taken in a second", runs["no pause"]["records/s"], bars[0], at_least=True),
        Figure("MB of memory", max(facts["MB"] for facts in runs.values()), bars[1]),
        Figure(f"wall time with trials of {seconds:g} s / that of a driver that costs nothing",
               runs["timed"]["wall s"] / runs["timed"]["least s"], bars[2]),
    ]  # fmt: skip
    result.notes.append(
        f"{trials:,} trials, {places:,} at a time. own: wall time without sleeping and renaming; busy: its share of "
        "wall time; least: wall time of a driver that takes no time itself; lag: the longest time from the end of a "
        "trial until the driver noticed it."
    )
    return result


def _start_driver(file: Path, out: StudyFolder, source: StudyFolder, places: int, seconds: float) -> dict[str, Any]:
    """Runs the driver in a process of its own; what `run_driver` prints."""
    package = Path(study.__file__).parents[1]
    command = [sys.executable, "-c", RUN_DRIVER, str(file), str(out.path), str(source.path), str(places), str(seconds)]
    facts: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, cwd=package, check=True).stdout)  # noqa: S603
    return facts


def _move_records_back(out: StudyFolder, source: StudyFolder) -> None:
    """Moves the records of a finished study back to where the executor takes them from, and deletes the study."""
    shutil.rmtree(source.path / "trials")
    os.rename(out.path / "trials", source.path / "trials")
    shutil.rmtree(out.path)
