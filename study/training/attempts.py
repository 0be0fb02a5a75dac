"""Attempts to train a trial: how each one starts and ends in the trial's folder, and what its errors mean."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from study.config.errors import FULL_DISK, NO_SPACE
from study.plan.job import Job
from study.record.io import append_line, quarantine, read_attempts, write_json
from study.record.layout import TrialFolder
from study.training.preemption import PreemptedError


def start_attempt(folder: TrialFolder, job: Job, attempt: int) -> None:
    """Writes that the trial is running, and deletes half-written files of an attempt that was killed."""
    for leftover in folder.path.glob("*.tmp*"):
        leftover.unlink()
    write_json(folder.state, {
        "state": "running", "failures": folder.attempts()[1], "attempt": attempt, "pid": os.getpid(),
        "host": platform.node(), "job": job.place, "started": time.time(),
    })  # fmt: skip


def quarantine_damage(folder: TrialFolder, warn: Callable[[str], None]) -> None:
    """Renames the damaged files of a finished trial and its result, so that it is trained again from its checkpoint."""
    for name in folder.damaged_files():
        file = folder.path / name
        if file.exists():
            warn(f"{file}: damaged, set aside as {quarantine(file).name}")
    if folder.result.exists():
        quarantine(folder.result)


def log_attempt_start(folder: TrialFolder, job: Job, attempt: int, step: int, trials: int = 1) -> None:
    """Appends to the attempts log that an attempt starts training at `step`, as one of `trials` in its process."""
    append_line(folder.attempts_log, {
        "attempt": attempt, "pid": os.getpid(), "host": platform.node(), "job": job.place, "time": time.time(),
        "step": step, "devices": job.devices, "trials": trials,
    })  # fmt: skip


def log_attempt_end(folder: TrialFolder, attempt: int, step: int | None, how: str) -> None:
    """Appends to the attempts log how an attempt ended, unless the disk is full."""
    with suppress(OSError):
        append_line(folder.attempts_log, {"attempt": attempt, "time": time.time(), "step": step, "how": how})


def sum_attempt_seconds(folder: TrialFolder) -> float:
    """Seconds that the attempts in the log took together. One without an end (killed, or still running) adds none.

    Of an attempt that shared its process with other trials, only its share counts.
    """
    lines = [line for line in read_attempts(folder.attempts_log) if isinstance(line.get("time"), float)]
    seconds = [
        float(end["time"] - start["time"]) / trials
        for start, end in pairwise(lines)
        if "how" in end
        and "how" not in start
        and start.get("attempt") == end.get("attempt")
        and isinstance(trials := start.get("trials", 1), int)
        and trials > 0
    ]
    return sum(max(0.0, each) for each in seconds)  # a clock may have been set back


def record_error(folder: TrialFolder, error: Exception) -> str:
    """Writes the error that ended an attempt. Returns the trial's new state: `failed` or `interrupted`.

    Preemption and a full disk do not count as failures: they give `interrupted`.
    """
    state = folder.read_state()
    if isinstance(error, PreemptedError):
        state |= {"state": "interrupted", "reason": str(error)}
    elif isinstance(error, OSError) and error.errno in FULL_DISK:
        state |= {"state": "interrupted", "reason": f"{NO_SPACE} {folder.path}"}
    else:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        trace = "".join(traceback.format_exception(error))
        state |= {"state": "failed", "failures": folder.attempts()[1] + 1, "reason": reason, "traceback": trace}
    with suppress(OSError):  # on a full disk, the state stays `running`, as after a kill
        write_json(folder.state, state)
    return str(state["state"])
