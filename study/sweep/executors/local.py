"""Runs trials on this machine, each in a process that is forked from a server with everything imported."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from study.config.schema import StudyConfig
from study.config.signals import start_forkserver
from study.plan.job import Job, split_processes
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors.base import STOP_GRACE_SECONDS
from study.sweep.executors.resources import count_cores, count_places, find_devices, share_threads


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None) -> LocalExecutor:
    """Builds an executor that uses all cores or GPUs of this machine, or runs `workers` trials at once."""
    devices = find_devices(study.run.device)
    places = workers or count_places(study.run, devices, count_cores())
    return LocalExecutor(places, devices, share_threads(study.run, places, count_cores()))


@dataclass(frozen=True)
class _Training:
    """A process and its devices. results: the file that each of its trials, by key, will write.

    None for a trial with an older file, that of a damaged record.
    """

    process: ForkServerProcess
    devices: tuple[str, ...]
    results: dict[str, Path | None]


class LocalExecutor:
    """Runs at most `places` processes at once, each on the devices with the fewest of them.

    A fork of a process that has imported torch, Lightning and W&B starts in a tenth of a second; a new interpreter
    takes many seconds. Every trial, or group of fused trials, has a process of its own and cannot affect others.
    """

    outlives_driver = False

    def __init__(self, places: int, devices: Sequence[str], threads: int) -> None:
        self.places = places
        self.devices, self.threads = list(devices), threads
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the forkserver imports torch
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["study.sweep.executors.preload"])
        self.running: list[_Training] = []
        self.finishing: list[ForkServerProcess] = []  # have a result, and upload the rest of their W&B runs
        self.not_started: dict[str, str] = {}

    @property
    def free(self) -> int:
        """Number of processes that it can start now."""
        return self.places - len(self.running)

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Returns no trials: none outlives its driver."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts a process for each trial, or for the trials of a group."""
        for own in split_processes(jobs):
            nodes = own[0].nodes
            devices = self._pick_devices(own[0].run.devices_per_trial // nodes) * nodes
            keys, files = [job.trial.key for job in own], [TrialFolder(job.folder).result for job in own]
            training = _Training(
                self.context.Process(
                    target=_train, name=keys[0],
                    args=([job.assign(devices, self.threads) for job in own], os.environ.get("CUDA_VISIBLE_DEVICES")),
                ),
                devices,
                {key: None if file.exists() else file for key, file in zip(keys, files, strict=True)},
            )  # fmt: skip
            start_forkserver()
            try:
                training.process.start()
            except (EOFError, ConnectionError):  # the forkserver was killed; the next start begins a new one
                self.not_started |= dict.fromkeys(keys, "was not started, because the forkserver ended")
            else:
                self.running.append(training)

    def wait(self, seconds: float) -> dict[str, str]:
        """Returns the trials whose process has ended, and its signal or exit code; empty after `seconds`.

        A trial has also ended when it has a result, even if its process still trains others or uploads its W&B run.
        There are at most `places` processes that have no other trial to train.
        """
        if self.not_started:
            not_started, self.not_started = self.not_started, {}
            return not_started
        wait([training.process.sentinel for training in self.running], timeout=seconds)
        self.finishing = [process for process in self.finishing if process.is_alive()]
        ended: dict[str, str] = {}
        for training in list(self.running):
            if not training.process.is_alive():
                ended |= dict.fromkeys(training.results, _describe_exit(training.process.exitcode))
                self.running.remove(training)
                continue
            with_result = [key for key, file in training.results.items() if file and file.exists()]
            if len(with_result) == len(training.results):
                if len(self.finishing) >= self.places:
                    continue
                self.finishing.append(training.process)
                self.running.remove(training)
            ended |= dict.fromkeys(with_result, "has a result")
            for key in with_result:
                del training.results[key]
        return ended

    def count_waiting(self) -> dict[str, int]:
        """Returns nothing: the driver submits no more trials than run."""
        return {}

    def cancel(self) -> None:
        """Does the same as `close`."""
        self.close()

    def close(self, grace: float = STOP_GRACE_SECONDS) -> None:
        """Sends SIGTERM to every trial, so that it stops after its step; kills what runs after `grace` seconds."""
        trained = [training.process for training in self.running]
        processes = [*trained, *self.finishing]
        try:
            for process in trained:
                process.terminate()
            deadline = time.monotonic() + grace
            for process in trained:
                process.join(max(0.0, deadline - time.monotonic()))
            for process in self.finishing:
                process.join()  # W&B gives up by itself
        finally:  # also after a second Ctrl-C
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
            self.running.clear()
            self.finishing.clear()

    def _pick_devices(self, count: int) -> tuple[str, ...]:
        if self.devices == ["cpu"]:
            return ("cpu",) * count
        load = Counter(device for training in self.running for device in training.devices)
        return tuple(sorted(self.devices, key=lambda device: load[device])[:count])


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def _train(jobs: Sequence[Job], visible_gpus: str | None) -> None:
    """Runs in a process of the executor. Writes output to files; the terminal's signals are for the driver only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    set_visible_gpus(visible_gpus)
    gc.freeze()  # objects from before the fork are never freed; each collection would scan them
    threading.Thread(target=stop_with_parent, daemon=True).start()
    from study.training.fused import run_fused_jobs  # imported already, by the forkserver
    from study.training.process_setup import redirect_output
    from study.training.trial import run_job

    if jobs[0].group:
        run_fused_jobs(jobs)
        return
    (job,) = jobs
    job.folder.mkdir(parents=True, exist_ok=True)
    redirect_output(TrialFolder(job.folder).log)
    run_job(job)


def set_visible_gpus(visible: str | None) -> None:
    """Sets $CUDA_VISIBLE_DEVICES to that of the parent; the forkserver may have started before the variable was set."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def stop_with_parent() -> None:
    """Ends this process once its parent has died; else the next driver would find cores and trial locks taken."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # stops after its step
    time.sleep(STOP_GRACE_SECONDS)
    os._exit(1)
