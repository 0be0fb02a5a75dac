"""The driver: runs the trials of a study that have no finished record, and writes their results to the Optuna study.

There is one driver per study, by a file lock on the study's folder, and it is the only writer of the Optuna study. It
can be killed at any moment: the same command starts another one, which reads from the records what is done.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from rich.console import Console

from study.analysis.trial_files import find_damage
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import NO_SPACE, UserError
from study.config.schema import StudyConfig
from study.config.wording import format_plural
from study.plan.fused_groups import plan_groups
from study.plan.job import Job
from study.plan.trials import PlannedTrial
from study.record.io import quarantine, read_json, write_json
from study.record.layout import LOCK_SECONDS, StudyFolder, TrialFolder
from study.record.outcome import record_failure
from study.record.wandb_links import count_unsynced_runs, link_wandb_runs
from study.record.wandb_names import name_runs
from study.sweep.executors.attempts import POLL_SECONDS, AttemptHandler, AttemptLoop
from study.sweep.executors.base import Executor
from study.sweep.executors.resources import uses_gpus
from study.sweep.listener import SweepListener
from study.sweep.optuna.connection import check_storage, open_trial_source
from study.sweep.retries import RetryPolicy
from study.sweep.study_file import check_folder, check_locks, write_study

if TYPE_CHECKING:  # importing W&B is slow, and a finished study does not need it
    from study.record.wandb_server import Connection, ServerWatch

SAME_FAILURE_LIMIT = 3  # if so many trials, or groups, fail alike and none succeeds, the fault is not in a trial
MIN_FREE_BYTES = 2**20  # with less than this, not even a trial's state can be written
DETACHED = "STUDY_DETACHED"  # environment variable, set for a driver that runs in the background


@dataclass(kw_only=True)
class SweepResult:
    """What a run of the driver returns.

    Attributes:
        failed: Trials without a result, and why.
        cancelled: Trials whose jobs a user has cancelled; a later run submits them again.
        stopped: Why the driver stopped early; empty if it did not.
        best: What a search has found, in a line; empty for a grid.
        left: Number of trials left in a cluster's queue, for a later run to collect.
        wandb: How trials are recorded on W&B, with the last problem of its server; None if none was started.
    """

    failed: dict[str, str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    stopped: str = ""
    best: str = ""
    left: int = 0
    wandb: Connection | None = None


@dataclass(kw_only=True)
class Driver(AttemptHandler):
    """Runs one study to its end.

    data: fingerprints of the data sets that trials are trained on, by name.
    space, build_network: what layers choose from, and the function of a module that builds a trial's network, for a
        study of another choice than normalization.
    """

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
    data: dict[str, str] = field(default_factory=dict)
    space: ChoiceSpace = NORMALIZATION
    build_network: Callable[[Job], Any] | None = None

    def __post_init__(self) -> None:
        self.result = SweepResult()
        self.retries = RetryPolicy(max_attempts=self.study.run.max_attempts, requeues=self.study.launch.requeues)
        self.first_tracebacks: dict[str, str] = {}  # of the first failures: one of every process
        self.successes = 0
        self.wandb_watch: ServerWatch | None = None
        self.groups: dict[str, tuple[str, ...]] = {}  # of fused trials, by the key of each of them

    def run(self) -> SweepResult:
        """Runs what has no result yet. Raises `UserError` if another driver runs the study."""
        check_folder(self.study, self.folder, self.space)
        if self.storage is not None:
            check_storage(self.storage)
        with self._take_lock():
            self._write_driver_pid()
            self.trial_source = open_trial_source(self.study, self.folder, self.storage, self.console.print)
            self.study_id = write_study(self.study, self.folder, self.environment, self.space)
            self._print_start()
            self.listener.begin(self.trial_source.total, self.executor.places, queued=self.executor.outlives_driver)
            with self.listener:
                self._run_rounds()
            self.result.best = self.trial_source.best()
        self._find_wandb_problem()
        return self.result

    def _run_rounds(self) -> None:
        try:
            for trials in self.trial_source.rounds():
                self.listener.replan(self.trial_source.total)
                self._run_round(trials)
                if self.result.stopped:
                    self.executor.cancel()
                if self.result.stopped or self.result.left or self.result.cancelled:
                    break
        except KeyboardInterrupt:
            saving = "" if self.executor.outlives_driver else "; running trials write a checkpoint"
            self.listener.stopping(f"stopping{saving}")
            raise
        finally:
            self.executor.close()
            link_wandb_runs(self.folder)

    def _run_round(self, trials: Sequence[PlannedTrial]) -> None:
        """Runs the trials of a round that have no result, several at a time."""
        loop = AttemptLoop(self.executor, self.retries, self)
        if self.build_network is None:
            self.groups = plan_groups(trials, self.study, gpu=uses_gpus(self.study))
        missing = {trial.key: trial for trial in self._find_missing(trials, loop)}
        loop.running.update({key: missing.pop(key) for key in self.executor.reattach(missing.keys())})
        for trial in missing.values():
            loop.queue.put(trial)
        self.listener.follow(loop.running)
        if self.detach:
            loop.submit_all()
            self.result.left = len(loop.running)
        else:
            loop.run()

    def _find_missing(self, trials: Sequence[PlannedTrial], loop: AttemptLoop) -> list[PlannedTrial]:
        """Returns the trials to run: those without an intact result that have not failed for good.

        Records the results of the others.
        """
        missing = []
        for trial in trials:
            record = self.record_of(trial)
            result = self._read_result(record, trial)
            if result is not None:
                self.trial_source.record_result(trial, result)
                loop.queue.mark_ended(trial.key, result["status"])
                self.listener.skip(result["status"])
            elif record.attempts()[1] >= self.study.run.max_attempts and not self.retry_failed:
                self.result.failed[trial.key] = record.status()[1]
                loop.queue.mark_ended(trial.key, "failed")
                self.listener.failed(trial.key, self.result.failed[trial.key], before=True)
            else:
                if self.retry_failed:
                    record.state.unlink(missing_ok=True)
                self.listener.expect(trial.key, trial.cost)
                missing.append(trial)
        return missing

    def _read_result(self, record: TrialFolder, trial: PlannedTrial) -> dict[str, Any] | None:
        """The result of a trial; None if there is none, or one that the report calls damaged, too."""
        damaged = ", ".join(record.damaged_files())
        result = None if damaged else record.read_result()
        if result is not None and (damaged := find_damage(record, replace(trial, space=self.space), self.space)):
            quarantine(record.result)  # its trial would not train again
            result = None
        if damaged:
            self.listener.message(f"{record.path}: damaged: {damaged}; the trial is resumed", "yellow")
        return result

    # ------------------------------------------------------------------------------- what the loop of attempts calls

    def record_of(self, trial: PlannedTrial) -> TrialFolder:
        return self.folder.trial(trial.trial_id, trial.replicate)

    def group_of(self, trial: PlannedTrial) -> Sequence[str]:
        return self.groups.get(trial.key, ())

    def build_job(self, trial: PlannedTrial) -> Job:
        folder = StudyFolder(self.folder.path.absolute())  # processes of a cluster may run in another folder
        return Job(
            trial=replace(trial, space=self.space),
            folder=folder.trial(trial.trial_id, trial.replicate).path,
            study=self.study.name,
            run=self.study.run,
            wandb_mode=self._wandb.mode,
            wandb_runs=name_runs(self.study, self.study_id, self._wandb.project_url),
            environment=self.environment,
            command=self.command_for(trial),
            start=trial.source.locate(trial.replicate, folder) if trial.source else None,
            data=self.data,
            build_network=self.build_network,
            group=tuple(self.group_of(trial)),
        )

    def is_stopped(self) -> bool:
        return bool(self.result.stopped)

    def stop_on_failure(self, trial: PlannedTrial, reason: str) -> bool:
        """Stops the study if the disk is full, or if the first trials all fail with the same traceback.

        Trials of a group count once: they have most of their settings in common.
        """
        if reason.startswith(NO_SPACE) or shutil.disk_usage(self.folder.path).free < MIN_FREE_BYTES:
            self.result.stopped = f"{NO_SPACE} {self.folder.path}; free some space, then run the same command to resume"
            return True
        state = self.record_of(trial).read_state()
        if state.get("state") != "failed" or state.get("failures") != 1:
            return False
        self.first_tracebacks[next(iter(self.group_of(trial)), trial.key)] = str(state.get("traceback"))
        if not self._all_fail_alike():
            return False
        self.result.failed[trial.key] = reason
        self.result.stopped = f"the first {SAME_FAILURE_LIMIT} trials failed in the same way: {reason}"
        return True

    def on_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        self.successes += 1
        for note in result.get("notes", []):
            self.listener.message(note, "yellow")
        self.trial_source.record_result(trial, result)
        self.listener.finished(trial.key, result)

    def on_retry(self, trial: PlannedTrial, reason: str) -> None:
        self.listener.retrying(trial.key, reason)

    def on_cancel(self, trial: PlannedTrial, reason: str) -> None:
        self.result.cancelled.append(trial.key)
        self.listener.cancelled(trial.key, reason)

    def on_give_up(self, trial: PlannedTrial, reason: str, *, started: bool) -> None:
        record = self.record_of(trial)
        self.result.failed[trial.key] = reason
        if not started:
            record_failure(record, reason)
        self.listener.failed(trial.key, reason, record.log if started else None)

    def on_poll(self, running: Mapping[str, PlannedTrial]) -> None:
        """Writes new results to the Optuna study, prunes trials of a search, and says if the W&B server fails."""
        self.trial_source.flush()
        self.listener.waiting(self.executor.count_waiting())
        if self.wandb_watch and (line := self.wandb_watch.poll()):
            self.listener.message(line, "yellow")
        for trial in running.values():
            epoch = self.trial_source.find_prune_epoch(trial)
            if epoch is not None:
                write_json(self.record_of(trial).prune, {"epoch": epoch})

    # --------------------------------------------------------------------------------------------------------- helpers

    def _all_fail_alike(self) -> bool:
        tracebacks = self.first_tracebacks.values()
        return self.successes == 0 and len(tracebacks) >= SAME_FAILURE_LIMIT and len(set(tracebacks)) == 1

    def _take_lock(self) -> Any:
        """Acquires the study's lock. Waits for a detached driver, as it does what this one would do."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            check_locks(self.folder)
            return self.folder.lock().acquire(timeout=LOCK_SECONDS)
        except Timeout:
            pass
        other = read_json(self.folder.driver) or {}
        name = f"process {other.get('pid')} on {other.get('host')}"
        if not other.get("detached"):
            raise UserError(f"{self.folder.path}: another driver ({name}) is running this study; see `status`")
        self.console.print(
            f"A detached driver ({name}) is running this study; waiting for it. Ctrl-C ends the waiting only.\n"
            f"Its output goes to {self.folder.driver_log}"
        )
        return self.folder.lock().acquire(poll_interval=POLL_SECONDS)

    def _write_driver_pid(self) -> None:
        write_json(self.folder.driver, {
            "pid": os.getpid(),
            "host": platform.node(),
            "started": time.time(),
            "detached": bool(os.environ.get(DETACHED)),
        })  # fmt: skip

    def _print_start(self) -> None:
        ctrl_c = "leaves submitted jobs in the queue" if self.executor.outlives_driver else "stops the study"
        self.console.print(
            f"{self.study.title}\n{self.folder.path}: {self.study.scale} scale, up to "
            f"{format_plural(self.executor.places, 'trial')} at once. Ctrl-C {ctrl_c}; run the same command to resume."
        )

    @cached_property
    def _wandb(self) -> Connection:
        """Determined when the first trial is submitted, because a finished study needs neither W&B nor its server."""
        from study.record.wandb_server import ServerWatch, connect

        connection = connect(self.study.tracking)
        if connection.project_url:
            self.listener.message(f"W&B: {connection.project_url}")
        if connection.warning:
            self.listener.message(connection.warning, "yellow")
        if connection.mode == "online":
            self.wandb_watch = ServerWatch(self.study.tracking)
        self.result.wandb = connection
        return connection

    def _find_wandb_problem(self) -> None:
        """Why runs are not on the server, for the last line."""
        if self.wandb_watch and self.result.wandb and count_unsynced_runs(self.folder):
            if not self.wandb_watch.problem:
                self.wandb_watch.check()
            problem = self.wandb_watch.problem or "the server works now; output.log of these trials has the reason"
            self.result.wandb = replace(self.result.wandb, problem=problem)
