"""The loop that runs each trial until it has a result or is abandoned. The driver and the worker of a job use it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from study.plan.job import Job
from study.plan.trials import PlannedTrial
from study.record.layout import TrialFolder
from study.sweep.dependencies import DependencyQueue
from study.sweep.executors.base import Executor
from study.sweep.retries import RetryPolicy

POLL_SECONDS = 0.5
LOCK_POLL_SECONDS = 2.0  # between checks of the locks of trials that another process trains


class AttemptHandler:
    """What the driver and the worker add to the loop. A subclass may leave out the methods that have a default."""

    def build_job(self, trial: PlannedTrial) -> Job:
        """Returns what a process needs to train the trial."""
        raise NotImplementedError

    def group_of(self, trial: PlannedTrial) -> Sequence[str]:
        """Returns the keys of the trials that are trained in one process with this one."""
        return ()

    def record_of(self, trial: PlannedTrial) -> TrialFolder:
        """Returns the trial's folder."""
        raise NotImplementedError

    def is_stopped(self) -> bool:
        """Whether the loop ends now, whatever is left to run."""
        raise NotImplementedError

    def stop_on_failure(self, trial: PlannedTrial, reason: str) -> bool:
        """Stops the loop and returns True if this failure will not be the trial's alone, such as a full disk.

        The trial is then not tried again, but it is not recorded as failed either.
        """
        return False

    def on_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        """A trial has a result."""

    def on_retry(self, trial: PlannedTrial, reason: str) -> None:
        """A trial ended without a result and is tried again."""

    def on_cancel(self, trial: PlannedTrial, reason: str) -> None:
        """A user has cancelled the trial's job in the cluster's queue."""

    def on_give_up(self, trial: PlannedTrial, reason: str, *, started: bool) -> None:
        """A trial is not tried again; it never started if the trial that it starts from has no weights."""

    def on_poll(self, running: Mapping[str, PlannedTrial]) -> None:
        """Called after every wait for the executor, about twice a second."""


class AttemptLoop:
    """Submits ready trials to an executor, waits for their ends, and retries them by a policy.

    A trial that another process trains is not submitted again while that process holds its lock; after
    `elsewhere_limit` seconds the loop drops it without recording a result or a failure.

    Attributes:
        queue: Put trials here before `run`.
        running: Trials that run or wait in the executor's queue, by key.
    """

    def __init__(
        self, executor: Executor, retries: RetryPolicy, handler: AttemptHandler, elsewhere_limit: float = math.inf
    ) -> None:
        self.executor, self.retries, self.handler = executor, retries, handler
        self.elsewhere_limit = elsewhere_limit
        self.queue = DependencyQueue()
        self.running: dict[str, PlannedTrial] = {}
        self._elsewhere: dict[str, tuple[PlannedTrial, float]] = {}  # with the time when it was noticed
        self._locks_checked = -math.inf

    def run(self) -> None:
        """Runs until every trial has a result or is abandoned, or the handler stops it."""
        self._give_up_unstartable()
        while (self.queue.ready or self.running or self._elsewhere) and not self.handler.is_stopped():
            self._submit(self._pop_ready())
            for key, ending in self.executor.wait(POLL_SECONDS).items():
                self._handle_end(self.running.pop(key), ending)
            self._check_elsewhere()
            self._give_up_unstartable()
            self.handler.on_poll(self.running)

    def submit_all(self) -> None:
        """Submits every trial, and leaves the rest to an executor that outlives this process."""
        self._give_up_unstartable()
        self._submit([*self.queue.ready.values(), *self.queue.pop_blocked()])
        self.queue.ready.clear()

    def _submit(self, trials: Sequence[PlannedTrial]) -> None:
        self.running.update({trial.key: trial for trial in trials})
        if trials:
            jobs = [self.handler.build_job(trial) for trial in trials]
            self.executor.submit([replace(job, alone=job.trial.key in self.retries.kills) for job in jobs])

    def _pop_ready(self) -> list[PlannedTrial]:
        """As many ready trials as the executor starts processes for now."""
        trials: list[PlannedTrial] = []
        for _ in range(self.executor.free):
            if not self.queue.ready:
                break
            trials += self.queue.pop_ready(self._find_group)
        return trials

    def _find_group(self, trial: PlannedTrial) -> list[str]:
        """The trials that share a process with `trial`. Those that failed or were killed are trained alone."""
        failed = self.retries.kills.keys()
        return [] if trial.key in failed else [key for key in self.handler.group_of(trial) if key not in failed]

    def _handle_end(self, trial: PlannedTrial, ending: str) -> None:
        record = self.handler.record_of(trial)
        step, reason = self.retries.next_step(record, ending)
        if step == "done":
            result = record.read_result()
            assert result is not None
            self.handler.on_result(trial, result)
            self.queue.mark_ended(trial.key, result["status"])
        elif step == "elsewhere":
            self._elsewhere[trial.key] = trial, time.monotonic()
        elif step == "cancelled":
            self.handler.on_cancel(trial, reason)
            self.queue.mark_ended(trial.key, "cancelled")
        elif self.handler.stop_on_failure(trial, reason):
            return
        elif step == "retry":
            self.handler.on_retry(trial, reason)
            self.queue.put(trial)
        else:
            self.handler.on_give_up(trial, reason, started=True)
            self.queue.mark_ended(trial.key, "failed")

    def _check_elsewhere(self) -> None:
        """Handles the ends of trials whose other process has released its lock."""
        now = time.monotonic()
        if now - self._locks_checked < LOCK_POLL_SECONDS:
            return
        self._locks_checked = now
        for key, (trial, since) in list(self._elsewhere.items()):
            if not self.handler.record_of(trial).is_locked():
                del self._elsewhere[key]
                self._handle_end(trial, "was started elsewhere")
            elif now - since > self.elsewhere_limit:
                del self._elsewhere[key]

    def _give_up_unstartable(self) -> None:
        """Gives up trials whose start trial has no weights; `--retry-failed` on the start trial runs them too."""
        for trial, reason in self.queue.pop_unstartable():
            self.handler.on_give_up(trial, reason, started=False)
