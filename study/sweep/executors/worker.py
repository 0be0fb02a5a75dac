"""What runs inside a cluster's job: its trials, in a pool of its own, until they are done or a signal comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from study.config.schema import LaunchConfig
from study.plan.job import Job
from study.record.layout import FINISHED, TrialFolder
from study.record.outcome import record_failure
from study.sweep.dependencies import DependencyQueue
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_places, find_devices, share_threads
from study.sweep.retries import RetryPolicy
from study.training.preemption import handle_signals

POLL_SECONDS = 0.5
ELSEWHERE_SECONDS = 60.0  # how long a trial that something else works on is waited for


def work(jobs: Sequence[Job], launch: LaunchConfig, *, place: str, grace: float) -> bool:
    """Trains the trials of `jobs`, as many at once as its cores or GPUs allow, each until it is done or given up.

    On SIGTERM, SIGUSR1 or SIGUSR2 every trial leaves after its next step, or is killed after `grace` seconds. Returns
    whether it was such a signal that ended the work. What has become of the trials, their records say.
    """
    placed = {job.trial.key: replace(job, place=place) for job in jobs}
    waiting = _queue(jobs)
    run = jobs[0].run
    # Without GPUs of its own a job may see those of others.
    devices = find_devices(run.device) if launch.gpus else ["cpu"]
    places = min(count_places(run, devices, launch.cpus), len(jobs))
    pool = LocalExecutor(places, devices, share_threads(run, places, launch.cpus))
    retries = RetryPolicy(max_attempts=run.max_attempts, requeues=launch.requeues)
    running: dict[str, Job] = {}
    elsewhere: dict[str, float] = {}  # since when
    with handle_signals() as leave:  # in place of the engine's handlers, which would go on, or pickle
        try:
            while (waiting.ready or running) and not leave.signal:
                while waiting.ready and len(running) < places:
                    job = placed[waiting.ready.popleft().key]
                    running[job.trial.key] = job
                    pool.submit([job])
                for key, how in pool.wait(POLL_SECONDS).items():
                    job = running.pop(key)
                    record = TrialFolder(job.folder)
                    fate, reason = retries.judge(record, how)
                    if fate == "given up":
                        record_failure(record, reason)
                    if fate in ("done", "given up"):
                        waiting.settle(key, _end(record))
                    since = elsewhere.setdefault(key, time.monotonic()) if fate == "elsewhere" else 0.0
                    if fate == "again" or (fate == "elsewhere" and time.monotonic() - since < ELSEWHERE_SECONDS):
                        waiting.put(job.trial)
                for key, reason in waiting.lost.items():
                    record_failure(TrialFolder(placed[key].folder), reason)
                waiting.lost.clear()
        finally:
            pool.close(grace)
    return leave.signal is not None


def _queue(jobs: Sequence[Job]) -> DependencyQueue:
    """The trials of a job. What others start from has ended before, or is among them."""
    waiting, own = DependencyQueue(), {job.trial.key for job in jobs}
    for job in jobs:
        source = job.trial.waits_for
        if source is not None and source not in own:
            assert job.start is not None
            waiting.settle(source, _end(TrialFolder(job.start)))
    for job in jobs:
        waiting.put(job.trial)
    return waiting


def _end(record: TrialFolder) -> str:
    """What has become of a trial on which nothing works any more."""
    state = record.status()[0]
    return state if state in (*FINISHED, "failed") else "unfinished"
