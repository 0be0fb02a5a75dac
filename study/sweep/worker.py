"""What runs inside a cluster's job: its trials, in a pool of its own, until they are done or a signal comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from study.config import LaunchConfig
from study.job import Job
from study.record.files import TrialFolder, read_json, write_json
from study.record.leave import listening
from study.sweep.executor import Retries
from study.sweep.local import LocalExecutor
from study.sweep.machine import count_places, find_devices, share_threads

POLL_SECONDS = 0.5
ELSEWHERE_SECONDS = 60.0  # how long a trial that something else works on is waited for


def work(jobs: Sequence[Job], launch: LaunchConfig, *, place: str, grace: float) -> bool:
    """Trains the trials of `jobs`, as many at once as its cores or GPUs allow, each until it is done or given up.

    On SIGTERM, SIGUSR1 or SIGUSR2 every trial leaves after its next step, or is killed after `grace` seconds. Returns
    whether it was such a signal that ended the work. What has become of the trials, their records say.
    """
    waiting = deque(replace(job, place=place) for job in jobs)
    run = jobs[0].run
    # Without GPUs of its own a job may see those of others.
    devices = find_devices(run.device) if launch.gpus else ["cpu"]
    places = min(count_places(run, devices, launch.cpus), len(waiting))
    pool = LocalExecutor(places, devices, share_threads(run, places, launch.cpus))
    retries = Retries(max_attempts=run.max_attempts, requeues=launch.requeues)
    running: dict[str, Job] = {}
    elsewhere: dict[str, float] = {}  # since when
    with listening() as leave:  # in place of the engine's handlers, which would go on, or pickle
        try:
            while (waiting or running) and not leave.signal:
                while waiting and len(running) < places:
                    job = waiting.popleft()
                    running[job.trial.key] = job
                    pool.submit([job])
                for key, how in pool.wait(POLL_SECONDS).items():
                    job = running.pop(key)
                    record = TrialFolder(job.folder)
                    fate, reason = retries.judge(record, how)
                    if fate == "given up":
                        _note_failure(record, reason)
                    since = elsewhere.setdefault(key, time.monotonic()) if fate == "elsewhere" else 0.0
                    if fate == "again" or (fate == "elsewhere" and time.monotonic() - since < ELSEWHERE_SECONDS):
                        waiting.append(job)
        finally:
            pool.close(grace)
    return leave.signal is not None


def _note_failure(record: TrialFolder, reason: str) -> None:
    """A trial that was killed leaves no reason; without a driver that watches, nobody else would write it."""
    state = read_json(record.state) or {}
    write_json(record.state, {**state, "state": "failed", "reason": reason})
