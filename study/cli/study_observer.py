"""Observes a study: trials by state, problems, running trials, time left and interim answers.

`status`, `status --watch` and `report --serve` read the records. The driver's progress bar reports events instead, and
need not read thousands of records each second.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from study.cli.background import BackgroundTask
from study.cli.recorded import read_checked_state
from study.config.schema import StudyConfig
from study.plan.loading import StudyFile
from study.plan.trials import PlannedTrial, count_search_trials, plan_trials
from study.record.contents import FINISHED
from study.record.io import open_file, read_json
from study.record.layout import StudyFolder, TrialFolder, read_reason
from study.sweep.executors.slurm import QueuedJob, describe_end, read_queue

STATES = ("done", "diverged", "pruned", "running", "submitted", "queued", "stale", "failed", "damaged", "planned")
PROBLEM_STATES = ("failed", "damaged", "stale", "diverged")
ANSWERS_SHARE = 0.02  # of this machine's processor time, for interim answers
MAX_RUNNING = 10  # running trials that a snapshot describes
MAX_SUBMITTED = 100  # trials in the cluster's queue that are checked for a start
READ_SECONDS = 2.0  # between two readings of the records
READ_SECONDS_WITH_QUEUE = 10.0  # if each reading asks Slurm for its queue
READ_SHARE = 0.1  # of one core, for reading
METRICS_TAIL = 2**14  # bytes; holds the last rows of a metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """State of a trial and the reason for it. seconds: duration of a finished trial. result_time: when it finished."""

    key: str
    state: str
    reason: str
    seconds: float = 0.0
    result_time: int = 0


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """How far a running trial is. epoch: the last finished one. seconds: since its start. place: where, if not here."""

    key: str
    epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class StudySnapshot:
    """A study at one moment.

    states: number of trials by state. seconds_left: None if unknown. note: which driver runs, or what it waits for.
    answers: the result of `compute_interim_answers`. running: at most `MAX_RUNNING` of the running trials.
    repeated: suggestions of a search that repeat an earlier cell; `total` does not count them. waiting: number of
    trials that wait in the cluster's queue, by reason.
    """

    name: str
    total: int
    states: Mapping[str, int]
    seconds_left: float | None = None
    note: str = ""
    problems: Sequence[TrialStatus] = ()
    answers: Mapping[str, Any] | None = None
    answers_error: str = ""
    running: Sequence[RunningTrial] = ()
    repeated: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Number of trials with a result."""
        return sum(self.states.get(state, 0) for state in FINISHED)


class StudyObserver:
    """Collects what is known about a study, from its records or from a driver's events, for `take_snapshot`.

    study: None observes the trials that are on disk. first_answers: seconds before the first interim answers.
    states: number of trials by state, without running and planned ones. running: running trials by key, or those in the
    cluster's queue (`submitted`). waiting: how many of these wait in the queue, by reason. costs: relative durations of
    the trials to do. places: trials that run at once; None: as many as run now. timed: number, seconds and cost of the
    finished trials whose duration is known.
    """

    def __init__(self, folder: StudyFolder, study: StudyConfig | None = None, *, first_answers: float = 0.0) -> None:
        self.folder = folder
        self.search = study if study is not None and study.search is not None else None
        self.plan: dict[str, PlannedTrial] = {}
        if study is not None and self.search is None:
            self.plan = {trial.key: trial for trial in plan_trials(study)}
        self.total, self.repeated = len(self.plan), 0
        self.trials: dict[str, TrialStatus] = {}
        self.states: Counter[str] = Counter()
        self.problems: dict[str, TrialStatus] = {}
        self.running: Mapping[str, PlannedTrial | None] = {}
        self.submitted = False
        self.places: int | None = None
        self.waiting: Mapping[str, int] = {}
        self.costs: dict[str, float] = {}
        self.timed = (0, 0.0, 0.0)
        self.note = self.driver = ""
        self.pause = READ_SECONDS
        self.answers = BackgroundTask("answers", folder, share=ANSWERS_SHARE, first=first_answers)

    def take_snapshot(self) -> StudySnapshot:
        """The study now; computes new interim answers in the background when trials have finished."""
        running = dict(self.running)  # a copy: the driver's thread changes it
        states = Counter(self.states)
        self.answers.poll(self.finished)
        states["submitted" if self.submitted else "running"] = len(running)
        states["planned"] = max(0, self.total - sum(states.values()))
        return StudySnapshot(
            name=self.folder.path.name, total=self.total, states=states, seconds_left=self.estimate_seconds_left(),
            note=self.note, problems=list(self.problems.values()), answers=self.answers.result,
            answers_error=self.answers.error, running=self._describe_running(running), repeated=self.repeated,
            waiting=self.waiting,
        )  # fmt: skip

    @property
    def finished(self) -> int:
        """Number of trials with a result."""
        return sum(self.states[state] for state in FINISHED)

    def estimate_seconds_left(self) -> float | None:
        """Time left, from what finished trials took; None while that is unknown."""
        places = len(self.running)
        if self.places is not None:
            places = min(self.places, max(0, places - sum(self.waiting.values()))) if self.submitted else self.places
        count, seconds, cost = self.timed
        unseen = self.total - len(self.costs) - sum(self.states[state] for state in (*FINISHED, "failed"))
        if not places or cost <= 0 or not (self.costs or unseen > 0):
            return None
        # A search has not suggested the unseen trials yet: each is expected to take the mean time.
        return (seconds / cost * sum(self.costs.values()) + seconds / count * max(0, unseen)) / places

    def read_records(self) -> None:
        """Reads the state of every trial. A finished trial is read again only if its result was replaced."""
        started = time.monotonic()
        self.driver, queue = describe_driver(self.folder), read_queue(self.folder)
        if self.search is not None:
            self.repeated = self.folder.read_suggestions()[1]
            self.total = count_search_trials(self.search, self.repeated)
        records = [self.record(key) for key in self.plan] if self.plan else self.folder.trials()
        self.trials = {record.key: self._read_status(record, queue) for record in records}
        trials = self.trials.values()
        self.states = Counter(trial.state for trial in trials if trial.state not in ("running", "planned"))
        jobs = [queue[trial.key][1] for trial in trials if trial.state == "queued"]
        self.waiting = Counter(job.describe() for job in jobs if job.state == "PENDING")
        self.problems = {trial.key: trial for trial in trials if trial.state in PROBLEM_STATES}
        self.running = {trial.key: self.plan.get(trial.key) for trial in trials if trial.state == "running"}
        self.costs = {trial.key: self._cost(trial) for trial in trials if trial.state not in (*FINISHED, "failed")}
        finished = [trial for trial in trials if trial.state in FINISHED]
        self.timed = len(finished), sum(trial.seconds for trial in finished), sum(map(self._cost, finished))
        shortest = READ_SECONDS_WITH_QUEUE if self.folder.queue.exists() else READ_SECONDS
        self.pause = max(shortest, (time.monotonic() - started) / READ_SHARE)

    def check_contents(self, recorded: StudyFile) -> None:
        """Reads all files of the trials that have ended, as a report does: one with a wrong file is `damaged`."""
        for key, trial in self.trials.items():
            if trial.state in (*FINISHED, "failed", "stale"):
                state, reason = read_checked_state(self.record(key), recorded, self.plan.get(key))
                if trial.state != "stale" or state not in ("stale", "planned"):  # no record says how its job ended
                    self.trials[key] = replace(trial, state=state, reason=reason)

    def add_finished(self, key: str, status: str, seconds: float) -> None:
        """Counts a trial that has finished now."""
        self.states[status] += 1
        self.timed = self.timed[0] + 1, self.timed[1] + seconds, self.timed[2] + self.costs.pop(key, 0.0)
        self.problems.pop(key, None)

    def add_failed(self, key: str, reason: str) -> None:
        """Counts a trial that will not be tried again."""
        self.states["failed"] += 1
        self.costs.pop(key, None)
        self.problems[key] = TrialStatus(key=key, state="failed", reason=reason)

    @property
    def version(self) -> object:
        """Differs between two readings if a trial has started, has ended or has a new result."""
        return frozenset(self.trials.values())

    def record(self, key: str) -> TrialFolder:
        """The folder of the trial `ID-rREPLICATE`."""
        trial_id, _, replicate = key.rpartition("-r")
        return self.folder.trial(trial_id, int(replicate))

    def _read_status(self, record: TrialFolder, queue: Mapping[str, tuple[str, QueuedJob]]) -> TrialStatus:
        key, before, result_time = record.key, self.trials.get(record.key), 0
        with contextlib.suppress(OSError):
            result_time = record.result.stat().st_mtime_ns
        if before is not None and before.state in FINISHED and before.result_time == result_time:
            return before
        result, damaged = record.check()
        if result is not None and not damaged:
            seconds = float(result.get("seconds") or 0.0)
            return TrialStatus(
                key=key, state=result["status"], reason=read_reason(result), seconds=seconds, result_time=result_time
            )
        state, reason = record.status()
        if state in ("planned", "stale") and key in queue:
            name, job = queue[key]
            if not job.has_ended:
                state, reason = "queued", f"Slurm job {name}: {job.describe()}" + (f"; {reason}" if reason else "")
            elif not self.driver:
                state, reason = "stale", describe_end(self.folder, name, job) + (f"; {reason}" if reason else "")
        return TrialStatus(key=key, state=state, reason=reason)

    def _cost(self, trial: TrialStatus) -> float:
        return self.plan[trial.key].cost if trial.key in self.plan else 1.0

    def _describe_running(self, running: Mapping[str, PlannedTrial | None]) -> list[RunningTrial]:
        """The first running trials; in the cluster's queue, the first that have started."""
        keys = list(running)
        if self.submitted:
            keys = [key for key in keys[:MAX_SUBMITTED] if self.record(key).state.exists()]
        return [describe_running(self.record(key), running[key]) for key in keys[:MAX_RUNNING]]


def describe_driver(folder: StudyFolder) -> str:
    """Which driver runs the study; empty if none does."""
    if not folder.is_locked():
        return ""
    driver = read_json(folder.driver) or {}
    kind = "a detached driver" if driver.get("detached") else "a driver"
    return f"{kind} is running: process {driver.get('pid')} on {driver.get('host')}"


def describe_running(record: TrialFolder, planned: PlannedTrial | None = None) -> RunningTrial:
    """How far a trial is and where it runs, from its record.

    A trial that is started again has the state of its last attempt until its new process has the lock; it then has no
    duration and no place yet.
    """
    state = record.read_state() if record.is_locked() else {}
    started, place = state.get("started"), state.get("job") or state.get("host")
    return RunningTrial(
        key=record.key, epoch=read_last_epoch(record.metrics), epochs=planned.config.epochs if planned else None,
        seconds=None if started is None else max(0.0, time.time() - started),
        place="" if place in (None, platform.node()) else str(place),
    )  # fmt: skip


def read_last_epoch(metrics: Path) -> int | None:
    """The last epoch in a metrics.jsonl, read from its end; None if there is none."""
    try:
        with open_file(metrics) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - METRICS_TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            epoch = from_json(line)["epoch"]
        except (ValueError, KeyError, TypeError):  # a line that is cut off
            continue
        if isinstance(epoch, int):
            return epoch
    return None
