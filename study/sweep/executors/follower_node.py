"""What runs on the other nodes of a Slurm job: it joins the trials that the first node trains, one after the other."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess

from study.config.schema import LaunchConfig
from study.config.signals import STOP_SIGNALS, start_forkserver
from study.plan.job import Job
from study.record.layout import TrialFolder
from study.sweep.executors.attempts import POLL_SECONDS
from study.sweep.executors.resources import count_job_cores, find_job_devices, share_of_node, share_threads
from study.training.preemption import StopRequest


def join_trials(jobs: Sequence[Job], launch: LaunchConfig, stop_request: StopRequest, *, grace: float) -> None:
    """Trains this node's share of the trials, until all have a result, or Slurm ends the job with its first node.

    The first node decides which trial is trained, and when it stops.
    """
    run = jobs[0].run
    local = find_job_devices(run, launch)[: run.devices_per_trial // launch.nodes]
    devices = tuple(local if local != ["cpu"] else ["cpu"] * (run.devices_per_trial // launch.nodes)) * launch.nodes
    threads = share_threads(share_of_node(run, launch), 1, count_job_cores(launch))
    jobs = [replace(job.assign(devices, threads), nodes=launch.nodes) for job in jobs]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study.sweep.executors.preload"])
    while stop_request.signal is None and not all(TrialFolder(job.folder).read_result() for job in jobs):
        process = context.Process(target=_join, args=(jobs,))
        start_forkserver()
        process.start()
        while process.is_alive() and stop_request.signal is None:
            process.join(POLL_SECONDS)
        _end(process, grace)


def _join(jobs: Sequence[Job]) -> None:
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    from study.training.trial import join_trial  # imported already, by the forkserver

    join_trial(jobs)


def _end(process: ForkServerProcess, grace: float) -> None:
    """Waits for a process that is about to end with rank 0; kills it after `grace` seconds."""
    process.join(grace)
    if process.is_alive():
        process.kill()
        process.join()
