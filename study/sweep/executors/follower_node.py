"""What runs on all but the first node of a cluster's job: it joins the trials that the first node trains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess

from study.config.rendezvous import Rendezvous
from study.config.schema import LaunchConfig
from study.config.signals import STOP_SIGNALS, start_forkserver
from study.plan.job import Job
from study.record.layout import TrialFolder
from study.sweep.executors.attempts import POLL_SECONDS
from study.sweep.executors.local import set_visible_gpus, stop_with_parent
from study.sweep.executors.resources import count_job_cores, find_job_devices, share_of_node, share_threads
from study.training.preemption import StopRequest


def join_trials(
    jobs: Sequence[Job], launch: LaunchConfig, stop_request: StopRequest, *, grace: float, rendezvous: Rendezvous
) -> None:
    """Trains this node's share of the trials, until all have a result, or the cluster ends the job with its first node.

    The first node decides which trial is trained, and when it stops.
    """
    run = jobs[0].run
    local = find_job_devices(run, launch)[: run.devices_per_trial // launch.nodes]
    devices = tuple(local if local != ["cpu"] else ["cpu"] * (run.devices_per_trial // launch.nodes)) * launch.nodes
    threads = share_threads(share_of_node(run, launch), 1, count_job_cores(launch))
    jobs = [replace(job.assign(devices, threads), rendezvous=rendezvous) for job in jobs]
    while stop_request.signal is None and not all(TrialFolder(job.folder).read_result() for job in jobs):
        process = start_joining(jobs)
        try:
            while process.is_alive() and stop_request.signal is None:
                process.join(POLL_SECONDS)
        finally:  # also when Ray cancels a task, which raises KeyboardInterrupt
            end_joining(process, grace)


def start_joining(jobs: Sequence[Job]) -> ForkServerProcess:
    """Starts a process that joins the trial that the first node trains now, if any, as one of `jobs`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study.sweep.executors.preload"])
    process = context.Process(target=_join, args=(jobs, os.environ.get("CUDA_VISIBLE_DEVICES")))
    start_forkserver()
    process.start()
    return process


def _join(jobs: Sequence[Job], visible_gpus: str | None) -> None:
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    set_visible_gpus(visible_gpus)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    from study.training.trial import join_trial  # imported already, by the forkserver

    join_trial(jobs)


def end_joining(process: ForkServerProcess, grace: float) -> None:
    """Waits for a process that is about to end with rank 0; kills it after `grace` seconds."""
    process.join(grace)
    if process.is_alive():
        process.kill()
        process.join()
