"""What the user of a running study sees: a live view on a terminal, a line a trial elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from study.cli.background import Background
from study.cli.live_view import ROWS, Running, StudySnapshot, TrialProblem, forecast_left
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from study.sweep.listener import SweepListener

ANSWERS_SHARE = 0.02  # of this machine's processor time, for the answers so far
FIRST_ANSWERS = 30.0  # seconds
LOOKED_AT = 100  # trials in an engine's queue


class SweepProgress(SweepListener):
    """Counts trials, and forecasts the time left from the cost of what is done and what is to do."""

    def __init__(self, console: Console, folder: StudyFolder) -> None:
        self.console, self.folder = console, folder
        self.total, self.places, self.queued = 0, 1, False
        self.states: Counter[str] = Counter()
        self.troubles: dict[str, TrialProblem] = {}
        self.running: Mapping[str, PlannedTrial] = {}
        self.costs: dict[str, float] = {}  # of what is to do
        self.seconds = self.cost_done = 0.0
        self.note = ""
        self.answers = Background("answers", folder, share=ANSWERS_SHARE, first=FIRST_ANSWERS)
        self.live = Live(
            get_renderable=self.picture, console=console, refresh_per_second=1, transient=True, vertical_overflow="crop"
        )

    def begin(self, total: int, places: int, *, queued: bool) -> None:
        self.total, self.places, self.queued = total, places, queued

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()
        self.answers.close()

    def expect(self, key: str, cost: float) -> None:
        """Adds to what is to do; the unit of cost is any, the same for all."""
        self.costs[key] = cost

    def follow(self, running: Mapping[str, PlannedTrial]) -> None:
        """Takes the trials that run, or wait in an engine's queue, as they change."""
        self.running = running

    def skip(self, status: str) -> None:
        """A trial was finished before."""
        self.states[status] += 1

    def finished(self, key: str, result: dict[str, Any]) -> None:
        """A trial has a result."""
        self.states[result["status"]] += 1
        self.seconds += result["seconds"]
        self.cost_done += self.costs.pop(key, 0.0)
        self.troubles.pop(key, None)
        metrics = result["metrics"]
        name = "accuracy" if "val_accuracy" in metrics else "score"
        value = metrics.get(f"val_{name}")
        outcome = result["status"] if value is None else f"validation {name} {value:.3f}"
        done = sum(self.states.values()) - self.states["failed"]
        self._log(f"{done}/{self.total} {key}: {outcome}, {result['seconds']:.0f} s; {self._left()}")

    def retrying(self, key: str, reason: str) -> None:
        """A trial has ended without a result and is tried again."""
        self.troubles[key] = TrialProblem(key=key, state="trying again", reason=reason)
        self._log(f"{key}: {reason}; trying again", "yellow")

    def failed(self, key: str, reason: str, where: object = None, *, before: bool = False) -> None:
        """A trial is given up; `where` to read more. before: it had failed when the study was taken up."""
        self.states["failed"] += 1
        self.costs.pop(key, None)
        self.troubles[key] = TrialProblem(key=key, state="failed", reason=reason)
        if not before:
            self._log(f"{key}: failed: {reason}" + (f" (see {where})" if where else ""), "red")

    def stopping(self, note: str) -> None:
        self.note = note

    def message(self, message: str, style: str = "") -> None:
        """A line above the view."""
        self.console.print(Text(message, style=style), soft_wrap=True)

    def picture(self) -> StudySnapshot:
        """The view, which a thread of its own draws."""
        running, states = list(self.running.values()), Counter(self.states)
        self.answers.poll(sum(states.values()) - states["failed"])
        states["submitted" if self.queued else "running"] = len(running)
        states["planned"] = max(0, self.total - sum(states.values()))
        return StudySnapshot(
            name=self.folder.path.name, total=self.total, states=states, left=self._left(), note=self.note,
            troubles=list(self.troubles.values()), answers=self.answers.result, answers_error=self.answers.error,
            running=self._at_work(running),
        )  # fmt: skip

    def _at_work(self, running: list[PlannedTrial]) -> list[Running]:
        """Trials to show; in a queue those of the first few that have left a trace."""
        shown = [
            Running(record=self.folder.trial(trial.trial_id, trial.replicate), epochs=trial.config.epochs)
            for trial in running[: LOOKED_AT if self.queued else None]
        ]
        return [item for item in shown if item.record.state.exists()][:ROWS] if self.queued else shown

    def _left(self) -> str:
        return forecast_left(self.seconds, self.cost_done, sum(self.costs.values()), self.places)

    def _log(self, message: str, style: str = "") -> None:
        """A line in a log file. On a terminal the view says it."""
        if not self.console.is_terminal:
            self.message(message, style)
