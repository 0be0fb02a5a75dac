"""The driver: takes the trials that have no finished record, has them trained, and tells what became of them.

There is one driver a study, by a lock on the study's folder, and it is the only writer of Optuna's storage. Killed at
any moment, it is started again by the same command: what is done is read from the records.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from filelock import Timeout
from rich.console import Console

from study.config.errors import NO_SPACE, UserError
from study.config.schema import StudyConfig
from study.plan.job import Job
from study.plan.trials import PlannedTrial
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.record.outcome import record_failure
from study.record.wandb_links import link_wandb_runs
from study.sweep.dependencies import DependencyQueue
from study.sweep.executors.base import Executor
from study.sweep.listener import SweepListener
from study.sweep.optuna.studies import TrialSource, check_storage, objective_curve, open_trial_source
from study.sweep.retries import RetryPolicy
from study.sweep.study_file import check_folder, check_locks, write_study

SAME_FAILURE_LIMIT = 3  # this many trials that fail alike, and none that succeeds: the fault is not in a trial
POLL_SECONDS = 0.5
FREE_BYTES = 2**20  # less is none: not even a state can be relied on to be written
LOCK_SECONDS = 1.0  # longer than `status` holds a lock to see whether it is free
DETACHED = "STUDY_DETACHED"  # tells a driver in the background what it is
ELSEWHERE_SECONDS = 2.0  # between looks at trials that something else works on


@dataclass(kw_only=True)
class SweepResult:
    """What a run of the driver leaves: trials without a result and why, and what a search has found.

    left: trials that were left in a cluster's queue, for a later run to collect.
    """

    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    best: str = ""
    left: int = 0


@dataclass(kw_only=True)
class Driver:
    """Runs one study to its end."""

    study: StudyConfig
    folder: StudyFolder
    executor: Executor
    environment: dict[str, Any]
    console: Console
    command_for: Callable[[PlannedTrial], str]
    storage: str | None = None
    retry_failed: bool = False
    detach: bool = False
    listener: SweepListener = field(default_factory=SweepListener)

    def run(self) -> SweepResult:
        """Plans, runs what is not done, tells. Raises `UserError` where another driver runs the study."""
        check_folder(self.study, self.folder)
        if self.storage is not None:
            check_storage(self.storage)
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            check_locks(self.folder)
            lock = self._take_lock()
        except OSError as error:
            raise UserError(f"--out {self.folder.path}: cannot be written: {error.strerror}") from None
        with lock:
            self._write_driver_pid()
            book = open_trial_source(self.study, self.folder, self.storage, self.console.print)
            write_study(self.study, self.folder, self.environment)
            stops = "leaves the queue alone" if self.executor.outlives_driver else "stops"
            self.console.print(
                f"{self.study.title}\n{self.folder.path}: {self.study.scale} scale, up to {self.executor.places} "
                f"trials at once. Ctrl-C {stops}; the same command goes on."
            )
            return self._run(book)

    def _take_lock(self) -> Any:
        """The study's lock. A detached driver is waited for: it does what this one would do."""
        try:
            return self.folder.lock().acquire(timeout=LOCK_SECONDS)
        except Timeout:
            other = read_json(self.folder.driver) or {}
        who = f"process {other.get('pid')} on {other.get('host')}"
        if not other.get("detached"):
            raise UserError(f"{self.folder.path}: another driver is running this study ({who}); status shows how far")
        self.console.print(
            f"a detached driver, {who}, is at work on this study; waiting for it. Ctrl-C leaves it alone.\n"
            f"It prints to {self.folder.driver_log}"
        )
        return self.folder.lock().acquire(poll_interval=POLL_SECONDS)

    def _write_driver_pid(self) -> None:
        me = {"pid": os.getpid(), "host": platform.node(), "started": time.time()}
        detached = bool(os.environ.get(DETACHED))
        write_json(self.folder.driver, {**me, "detached": detached})

    def _run(self, book: TrialSource) -> SweepResult:
        self.outcome = SweepResult()
        self.retries = RetryPolicy(max_attempts=self.study.run.max_attempts, requeues=self.study.launch.requeues)
        self.tracebacks: list[str] = []
        self.successes = 0
        queued = self.executor.outlives_driver
        self.listener.begin(book.total, self.executor.places, queued=queued)
        with self.listener:
            try:
                for trials in book.rounds():
                    self._run_round(book, trials)
                    if self.outcome.stopped:
                        self.executor.cancel()
                    if self.outcome.stopped or self.outcome.left:
                        break
            except KeyboardInterrupt:
                self.listener.stopping("stopping" if queued else "stopping; trials save and leave")
                raise
            finally:
                self.executor.close()
                link_wandb_runs(self.folder)
        self.outcome.best = book.best()
        return self.outcome

    def _run_round(self, book: TrialSource, trials: Sequence[PlannedTrial]) -> None:
        """Runs the trials of a round that have no result, several at a time, each until it has one or is given up."""
        waiting = DependencyQueue()
        missing = {trial.key: trial for trial in self._missing(book, trials, waiting)}
        running = {key: missing.pop(key) for key in self.executor.reattach(missing.keys())}
        for trial in missing.values():
            waiting.put(trial)
        self.listener.follow(running)
        elsewhere: list[PlannedTrial] = []
        looked = 0.0
        self._give_up(waiting)
        while (waiting.ready or running or elsewhere) and not self.outcome.stopped:
            free = max(0, self.executor.limit - len(running))
            starting = [waiting.ready.popleft() for _ in range(min(free, len(waiting.ready)))]
            if self.detach:  # nobody will be there to submit the others later
                starting += waiting.take_held()
            running |= {trial.key: trial for trial in starting}
            if starting:
                self.executor.submit([self._job(trial) for trial in starting])
            if self.detach:
                self.outcome.left = len(running)
                return
            for key, how in self.executor.wait(POLL_SECONDS).items():
                self._handle_finished(book, running.pop(key), how, waiting, elsewhere)
            if time.monotonic() - looked > ELSEWHERE_SECONDS:
                looked = time.monotonic()
                for trial in [trial for trial in elsewhere if not self._record(trial).is_locked()]:
                    elsewhere.remove(trial)
                    self._handle_finished(book, trial, "was started elsewhere", waiting, elsewhere)
            self._give_up(waiting)
            book.flush()
            self._prune(book, running)

    def _give_up(self, waiting: DependencyQueue) -> None:
        """Notes trials that start from one that has come to nothing: tried again when that one is, and has weights."""
        for key, reason in waiting.lost.items():
            self.outcome.failed[key] = reason
            trial_id, _, replicate = key.rpartition("-r")
            record_failure(self.folder.trial(trial_id, int(replicate)), reason)
            self.listener.failed(key, reason)
        waiting.lost.clear()

    def _missing(
        self, book: TrialSource, trials: Sequence[PlannedTrial], waiting: DependencyQueue
    ) -> list[PlannedTrial]:
        """Trials without a finished record; finished ones are told, failed ones stay failed unless to be retried."""
        missing = []
        for trial in trials:
            record = self._record(trial)
            damaged = record.damaged_files()
            result = None if damaged else record.read_result()
            if damaged:
                self.listener.message(f"{record.path}: damaged: {', '.join(damaged)}; the trial goes on", "yellow")
            if result is not None:
                book.record_result(trial, result)
                waiting.settle(trial.key, result["status"])
                self.listener.skip(result["status"])
            elif record.attempts()[1] >= self.study.run.max_attempts and not self.retry_failed:
                self.outcome.failed[trial.key] = record.status()[1]
                self.listener.failed(trial.key, self.outcome.failed[trial.key], before=True)
                waiting.settle(trial.key, "failed")
            else:
                if self.retry_failed:
                    record.state.unlink(missing_ok=True)
                self.listener.expect(trial.key, trial.cost)
                missing.append(trial)
        return missing

    def _handle_finished(
        self, book: TrialSource, trial: PlannedTrial, how: str, waiting: DependencyQueue, elsewhere: list[PlannedTrial]
    ) -> None:
        """Reads what became of a trial on which nothing works any more: a result, another attempt, or the end."""
        record = self._record(trial)
        fate, reason = self.retries.judge(record, how)
        if fate == "done":
            waiting.settle(trial.key, self._record_result(book, trial, record))
            return
        if fate == "elsewhere":
            elsewhere.append(trial)
            return
        if reason.startswith(NO_SPACE) or shutil.disk_usage(self.folder.path).free < FREE_BYTES:
            self.outcome.stopped = f"{NO_SPACE} {self.folder.path}; free some, and the same command goes on"
            return
        state = read_json(record.state) or {}
        if state.get("state") == "failed" and state.get("failures") == 1:
            self.tracebacks.append(str(state.get("traceback")))
            if self._all_fail_alike():
                self.outcome.failed[trial.key] = reason
                self.outcome.stopped = f"the first {SAME_FAILURE_LIMIT} trials failed in the same way: {reason}"
                return
        if fate == "again":
            self.listener.retrying(trial.key, reason)
            waiting.put(trial)
            return
        self.outcome.failed[trial.key] = reason
        waiting.settle(trial.key, "failed")
        self.listener.failed(trial.key, reason, record.log)

    def _record_result(self, book: TrialSource, trial: PlannedTrial, record: TrialFolder) -> str:
        """Takes in the result of a trial; returns its status."""
        result = record.read_result()
        assert result is not None
        self.successes += 1
        for note in result.get("notes", []):
            self.listener.message(note, "yellow")
        book.record_result(trial, result)
        self.listener.finished(trial.key, result)
        return str(result["status"])

    def _all_fail_alike(self) -> bool:
        seen = self.tracebacks
        return self.successes == 0 and len(seen) >= SAME_FAILURE_LIMIT and len(set(seen)) == 1

    def _prune(self, book: TrialSource, running: dict[str, PlannedTrial]) -> None:
        if self.study.search is None or self.study.search.pruner == "none":
            return
        for trial in running.values():
            record = self._record(trial)
            epoch = book.prune_at(trial, objective_curve(record, self.study.search.objective))
            if epoch is not None:
                write_json(record.prune, {"epoch": epoch})

    @cached_property
    def _wandb_mode(self) -> Literal["online", "offline", "disabled"]:
        """Asked when the first trial is to run: a finished study needs neither W&B nor its server."""
        from study.record.wandb_mode import requested_mode, resolve_mode

        mode = resolve_mode(self.study.tracking)
        if requested_mode(self.study.tracking) == "online" and mode == "offline":
            self.listener.message(
                "W&B does not answer: trials are recorded offline; `wandb sync` brings them there", "yellow"
            )
        return mode

    def _record(self, trial: PlannedTrial) -> TrialFolder:
        return self.folder.trial(trial.trial_id, trial.replicate)

    def _job(self, trial: PlannedTrial) -> Job:
        return Job(
            trial=trial,
            folder=self._record(trial).path,
            study=self.study.name,
            run=self.study.run,
            tracking=self.study.tracking,
            wandb_mode=self._wandb_mode,
            environment=self.environment,
            command=self.command_for(trial),
            start=trial.source.locate(trial.replicate, self.folder) if trial.source else None,
        )
