"""Shows the progress of a sweep: a live view on a terminal, one line per trial in a log file."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from study.cli.live_view import LiveView, format_time_left, format_waiting
from study.cli.study_observer import StudyObserver, TrialStatus
from study.config.errors import escape_controls
from study.config.wording import format_plural
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from study.sweep.listener import SweepListener

FIRST_ANSWERS = 30.0  # seconds after the start


class SweepProgress(SweepListener):
    """Passes the driver's events to a `StudyObserver`, and shows its snapshots."""

    def __init__(self, console: Console, folder: StudyFolder) -> None:
        self.console = console
        self.observer = StudyObserver(folder, first_answers=FIRST_ANSWERS)
        self.logged: set[str] = set()  # reasons why trials wait in the cluster's queue
        self.live = Live(
            get_renderable=lambda: LiveView(self.observer.take_snapshot()),
            console=console, refresh_per_second=1, transient=True, vertical_overflow="crop",
        )  # fmt: skip

    def begin(self, total: int, places: int, *, queued: bool) -> None:
        self.observer.total, self.observer.places, self.observer.submitted = total, places, queued

    def replan(self, total: int) -> None:
        self.observer.total = total

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()
        self.observer.answers.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            total = format_plural(self.observer.total, "trial")
            self.message(f"Stopped at {self.observer.finished} of {total} with a result.")

    def expect(self, key: str, cost: float) -> None:
        self.observer.costs[key] = cost

    def follow(self, running: Mapping[str, PlannedTrial]) -> None:
        self.observer.running = running

    def skip(self, status: str) -> None:
        self.observer.states[status] += 1

    def finished(self, key: str, result: dict[str, Any]) -> None:
        status, seconds, metrics = result["status"], result["seconds"], result["metrics"]
        self.observer.add_finished(key, status, seconds)
        name = "accuracy" if "val_accuracy" in metrics else "score"
        value = metrics.get(f"val_{name}")
        outcome = status if value is None else f"validation {name} {value:.3f}"
        left = format_time_left(self.observer.estimate_seconds_left())
        self._log(
            f"{self.observer.finished}/{self.observer.total} {key}: {outcome}, {seconds:.0f} s"
            + (f", {left}" if left else "")
        )

    def retrying(self, key: str, reason: str) -> None:
        self.observer.problems[key] = TrialStatus(key=key, state="trying again", reason=reason)
        self._log(f"{key}: {reason}; trying again", "yellow")

    def cancelled(self, key: str, reason: str) -> None:
        self.observer.costs.pop(key, None)
        self.message(f"{key}: {reason}; the same command submits it again", "yellow")

    def waiting(self, trials: Mapping[str, int]) -> None:
        new = trials.keys() - self.observer.waiting.keys() - self.logged
        self.observer.waiting = trials
        if new:
            self.logged |= new
            self._log(format_waiting({reason: trials[reason] for reason in new}))

    def failed(self, key: str, reason: str, where: object = None, *, before: bool = False) -> None:
        self.observer.add_failed(key, reason)
        if not before:
            self._log(f"{key}: failed: {reason}" + (f" (see {where})" if where else ""), "red")

    def stopping(self, note: str) -> None:
        self.observer.note = note

    def message(self, text: str, style: str = "") -> None:
        """Prints a line above the live view."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _log(self, line: str, style: str = "") -> None:
        """Prints a line in a log file; on a terminal the live view shows the same."""
        if not self.console.is_terminal:
            self.message(escape_controls(line), style)
