"""Runs trials on this machine: a forkserver with everything imported, and one process a trial."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from study.plan.job import Job
from study.record.layout import TrialFolder

GRACE_SECONDS = 30.0  # for a step and a checkpoint


class LocalExecutor:
    """At most `places` trials at once, dealt to `devices` in turn.

    A fork of a process that has imported torch, Lightning and W&B starts in a tenth of a second; a fresh interpreter
    takes many. Each trial has a process of its own, so nothing that one does to itself reaches another.
    """

    outlives_driver = False

    def __init__(self, places: int, devices: Sequence[str], threads: int) -> None:
        self.places = self.limit = places
        self.devices, self.threads = list(devices), threads
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, in the forkserver
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["study.sweep.executors.preload"])
        self.running: dict[str, tuple[ForkServerProcess, tuple[str, ...]]] = {}

    def reattach(self, keys: Collection[str]) -> set[str]:
        """None: trials do not outlive their driver."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts each trial on the devices with the fewest."""
        for job in jobs:
            devices = self._idlest(job.run.devices_per_trial)
            process = self.context.Process(
                target=_train, name=job.trial.key,
                args=(job.assign(devices, self.threads), os.environ.get("CUDA_VISIBLE_DEVICES")),
            )  # fmt: skip
            with _holding_interrupts():
                process.start()
                self.running[job.trial.key] = process, devices

    def wait(self, seconds: float) -> dict[str, str]:
        """Trials that have ended, with how their process ended; empty after `seconds`. The record says the rest."""
        wait([process.sentinel for process, _ in self.running.values()], timeout=seconds)
        ended = {key: process for key, (process, _) in self.running.items() if not process.is_alive()}
        for key in ended:
            del self.running[key]
        return {key: _describe(process.exitcode) for key, process in ended.items()}

    def cancel(self) -> None:
        """As `close`."""
        self.close()

    def close(self, grace: float = GRACE_SECONDS) -> None:
        """Asks every trial to leave, which it does after its next step; kills what is there after `grace` seconds."""
        processes = [process for process, _ in self.running.values()]
        try:
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + grace
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:  # of a second Ctrl-C, too
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
            self.running.clear()

    def _idlest(self, count: int) -> tuple[str, ...]:
        if self.devices == ["cpu"]:
            return ("cpu",) * count
        busy = Counter(device for _, devices in self.running.values() for device in devices)
        return tuple(sorted(self.devices, key=lambda device: busy[device])[:count])


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


def _train(job: Job, visible_gpus: str | None) -> None:
    """The trial's process. What a terminal sends is the driver's business; what it prints goes to its folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if visible_gpus is not None:  # the forkserver may be older than the task that it starts this for
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    gc.freeze()  # what was imported before the fork is no garbage, and looking through it takes time again and again
    threading.Thread(target=_follow_driver, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    from study.training.process_setup import redirect_output  # imported already, by the forkserver
    from study.training.trial import run_job

    redirect_output(TrialFolder(job.folder).log)
    run_job(job)


def _follow_driver() -> None:
    """A trial must not outlive a killed driver: the next one would find its cores taken and its folder locked."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os.kill(os.getpid(), signal.SIGTERM)  # leaves after its next step
    time.sleep(GRACE_SECONDS)
    os._exit(1)
