"""Runs trials on this machine: a forkserver with everything imported, and one process a trial."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from study.job import Job
from study.record.files import TrialFolder

GRACE_SECONDS = 10.0


class LocalExecutor:
    """At most `capacity` trials at once, dealt to `devices` in turn.

    A fork of a process that has imported torch, Lightning and W&B starts in a tenth of a second; a fresh interpreter
    takes many. Each trial has a process of its own, so nothing that one does to itself reaches another.
    """

    def __init__(self, workers: int, devices: Sequence[str], threads: int) -> None:
        self.capacity = workers
        self.devices, self.threads = list(devices), threads
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, in the forkserver
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["study.sweep.warm"])
        self.running: dict[str, tuple[ForkServerProcess, str]] = {}

    def submit(self, job: Job) -> None:
        """Starts a trial on the device with the fewest."""
        busy = [device for _, device in self.running.values()]
        device = min(self.devices, key=busy.count)
        process = self.context.Process(
            target=_train, args=(job.on((device,), self.threads),), name=job.trial.key, daemon=True
        )
        with _holding_interrupts():
            process.start()
            self.running[job.trial.key] = process, device

    def wait(self, seconds: float) -> dict[str, str]:
        """Trials that have ended, with how their process ended; empty after `seconds`. The record says the rest."""
        wait([process.sentinel for process, _ in self.running.values()], timeout=seconds)
        ended = {key: process for key, (process, _) in self.running.items() if not process.is_alive()}
        for key in ended:
            del self.running[key]
        return {key: _describe(process.exitcode) for key, process in ended.items()}

    def close(self) -> None:
        """Ends every trial, gently first."""
        processes = [process for process, _ in self.running.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self.running.clear()


@contextmanager
def _holding_interrupts() -> Iterator[None]:
    """Lets Ctrl-C wait: it would kill a forkserver that is still importing. What is started inside never sees it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def _train(job: Job) -> None:
    """The trial's process. Ctrl-C is the driver's business; what the trial prints goes to its folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what was imported before the fork is no garbage, and looking through it takes time again and again
    threading.Thread(target=_follow_driver, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(TrialFolder(job.folder).log, "a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from study.train import run_job  # imported already, by the forkserver

    run_job(job)


def _follow_driver() -> None:
    """A trial must not outlive a killed driver: the next one would find its cores taken and its folder locked."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
