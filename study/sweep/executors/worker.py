"""Trains the trials of a cluster's job in a local pool of processes, until they are done or a signal ends the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from study.config.rendezvous import Rendezvous
from study.config.schema import LaunchConfig
from study.plan.job import Job, split_processes
from study.plan.trials import PlannedTrial
from study.record.contents import FINISHED
from study.record.layout import TrialFolder
from study.record.outcome import record_failure
from study.sweep.dependencies import DependencyQueue
from study.sweep.executors.attempts import AttemptHandler, AttemptLoop
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import (
    count_job_cores,
    count_places,
    find_job_devices,
    share_of_node,
    share_threads,
)
from study.sweep.retries import RetryPolicy
from study.training.preemption import StopRequest

ELSEWHERE_LIMIT_SECONDS = 120.0  # how long a job waits for a trial that another process trains


def work(
    jobs: Sequence[Job],
    launch: LaunchConfig,
    stop_request: StopRequest,
    *,
    place: str,
    grace: float,
    rendezvous: Rendezvous | None = None,
) -> None:
    """Trains the trials of `jobs`, as many at once as its cores or GPUs allow, each until it is done or abandoned.

    With a `rendezvous` it trains them one at a time, together with `follower_node.join_trials` on the other nodes.

    After a `stop_request` every trial stops after its step, or is killed after `grace` seconds. The outcomes of the
    trials are in their records.
    """
    run, devices = share_of_node(jobs[0].run, launch), find_job_devices(jobs[0].run, launch)
    cores = count_job_cores(launch)
    places = 1 if launch.nodes > 1 else min(count_places(run, devices, cores), len(split_processes(jobs)))
    executor = LocalExecutor(places, devices, share_threads(run, places, cores))
    retries = RetryPolicy(max_attempts=run.max_attempts, requeues=launch.requeues)
    placed = {job.trial.key: replace(job, place=place, rendezvous=rendezvous) for job in jobs}
    worker = _Worker(placed, stop_request)
    loop = AttemptLoop(executor, retries, worker, ELSEWHERE_LIMIT_SECONDS)
    _fill(loop.queue, jobs)
    try:
        loop.run()
    finally:
        executor.close(grace)


@dataclass
class _Worker(AttemptHandler):
    """Trains given jobs. The driver may have ended, so the record says why a trial was abandoned."""

    jobs: dict[str, Job]
    stop_request: StopRequest

    def build_job(self, trial: PlannedTrial) -> Job:
        return self.jobs[trial.key]

    def group_of(self, trial: PlannedTrial) -> Sequence[str]:
        return self.jobs[trial.key].group

    def record_of(self, trial: PlannedTrial) -> TrialFolder:
        return TrialFolder(self.jobs[trial.key].folder)

    def is_stopped(self) -> bool:
        return self.stop_request.signal is not None

    def on_give_up(self, trial: PlannedTrial, reason: str, *, started: bool) -> None:
        record_failure(self.record_of(trial), reason)


def _fill(queue: DependencyQueue, jobs: Sequence[Job]) -> None:
    """Puts the trials of a job into the queue. Each start trial is in this job or has already ended."""
    own = {job.trial.key for job in jobs}
    for job in jobs:
        source = job.trial.waits_for
        if source is not None and source not in own:
            assert job.start is not None
            state = TrialFolder(job.start).status()[0]
            queue.mark_ended(source, state if state in (*FINISHED, "failed") else "unfinished")
    for job in jobs:
        queue.put(job.trial)
