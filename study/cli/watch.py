"""`status --watch`: the view of a running study from the records on disk, whatever runs it and wherever."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.live import Live

from study.cli.background import Background
from study.cli.live_view import Running, StudySnapshot, TrialProblem, forecast_left
from study.cli.progress import ANSWERS_SHARE
from study.cli.tables import format_driver, trial_state
from study.config.schema import StudyConfig
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import FINISHED, StudyFolder, TrialFolder
from study.sweep.executors.slurm import QueuedJob, read_queue

LOOK_SECONDS = 2.0
QUEUE_SECONDS = 10.0  # between looks where a look asks Slurm
LOOK_SHARE = 0.1  # of one core, for looks
SHOWN = ("failed", "damaged", "stale", "diverged")


class _Found(NamedTuple):
    """What is known of a trial; seconds: that a finished one took."""

    state: str
    reason: str
    seconds: float


def watch(console: Console, study: StudyConfig, folder: StudyFolder) -> bool:
    """Shows the study until nothing is left to do; returns whether every trial has a result.

    Without a terminal it prints a block each time something has changed.
    """
    watched = _Watched(study, folder)
    try:
        if not console.is_terminal:
            return _print_changes(console, watched)
        with Live(watched.look(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while not watched.ended:
                time.sleep(watched.pause)
                live.update(watched.look(), refresh=True)
        return watched.complete
    finally:
        watched.answers.close()


def _print_changes(console: Console, watched: _Watched) -> bool:
    before: object = None
    while True:
        picture = watched.look()
        changed = dict(picture.states), picture.troubles, picture.answers, picture.note
        if changed != before:
            console.print(picture)
            console.print()
        if watched.ended:
            return watched.complete
        before = changed
        time.sleep(watched.pause)


class _Watched:
    """Looks at a study again and again. What has a result is not read again."""

    def __init__(self, study: StudyConfig, folder: StudyFolder) -> None:
        self.study, self.folder = study, folder
        self.plan: dict[str, PlannedTrial] = {}
        self.total = 0
        if study.search is None:
            self.plan = {trial.key: trial for trial in plan_trials(study)}
            self.total = len(self.plan)
        else:
            self.total = study.search.n_trials * study.replicates
        self.finished: dict[str, _Found] = {}
        self.answers = Background("answers", folder, share=ANSWERS_SHARE, first=0.0)
        self.pause = LOOK_SECONDS
        self.ended = self.complete = False

    def look(self) -> StudySnapshot:
        """The study now."""
        started = time.monotonic()
        driver, queue = format_driver(self.folder), read_queue(self.folder)
        records = self._records()
        found = {key: self.finished.get(key) or self._read(key, record, queue) for key, record in records.items()}
        states = Counter(one.state for one in found.values())
        states["planned"] += self.total - len(found)  # of a search, that are not suggested yet
        self.answers.poll(len(self.finished))
        self.complete = len(self.finished) == self.total
        at_work = driver or states["running"] or states["queued"]
        self.ended = self.complete or not (at_work or states["planned"] or states["stale"] or states["damaged"])
        picture = StudySnapshot(
            name=self.folder.path.name, total=self.total, states=states, left=self._left(found),
            note=driver or ("nothing is left to do; report has the answers" if self.ended else "no driver is at work"),
            troubles=[TrialProblem(key=key, state=one.state, reason=one.reason)
                      for key, one in found.items() if one.state in SHOWN],
            answers=self.answers.result, answers_error=self.answers.error,
            running=[Running(record=records[key], epochs=self.plan[key].config.epochs if key in self.plan else None)
                     for key, one in found.items() if one.state == "running"],
        )  # fmt: skip
        longest = QUEUE_SECONDS if self.folder.queue.exists() else LOOK_SECONDS
        self.pause = max(longest, (time.monotonic() - started) / LOOK_SHARE)
        return picture

    def _records(self) -> dict[str, TrialFolder]:
        if self.study.search is not None:
            return {record.key: record for record in self.folder.trials()}
        return {key: self.folder.trial(trial.trial_id, trial.replicate) for key, trial in self.plan.items()}

    def _read(self, key: str, record: TrialFolder, queue: Mapping[str, tuple[str, QueuedJob]]) -> _Found:
        state, reason = trial_state(record, queue)
        result = record.read_result() if state in FINISHED else None
        if result is None:
            return _Found(state, reason, 0.0)
        self.finished[key] = _Found(state, reason, float(result.get("seconds") or 0.0))
        return self.finished[key]

    def _left(self, found: Mapping[str, _Found]) -> str:
        """The forecast, with as many places as trials run now."""
        costs = {key: self.plan[key].cost if key in self.plan else 1.0 for key in found}
        done = sum(costs[key] for key in self.finished)
        unseen = self.total - len(found)  # of a search, each as long as the others
        left = sum(costs[key] for key, one in found.items() if one.state not in (*FINISHED, "failed")) + unseen
        running = sum(one.state == "running" for one in found.values())
        return forecast_left(sum(one.seconds for one in self.finished.values()), done, left, running) if running else ""
