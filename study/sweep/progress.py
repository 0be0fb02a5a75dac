"""What a user watches: a bar with the time left on a terminal, a line a trial elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text


class SweepProgress:
    """Counts trials, and forecasts the time left from the cost of what is done and what is to do."""

    def __init__(self, console: Console, total: int, workers: int) -> None:
        self.console, self.total, self.workers = console, total, workers
        self.done = 0
        self.seconds = self.cost_done = self.cost_left = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trials"),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=console, transient=True,
        )  # fmt: skip
        self.task: TaskID = self.bar.add_task("training", total=total, left="")

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def expect(self, cost: float) -> None:
        """Adds to what is to do; the unit of cost is any, the same for all."""
        self.cost_left += cost

    def skip(self) -> None:
        """A trial was finished before."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)

    def finished(self, key: str, cost: float, result: dict[str, Any]) -> None:
        """A trial has a result."""
        self.done += 1
        self.seconds += result["seconds"]
        self.cost_done += cost
        self.cost_left -= cost
        metrics = result["metrics"]
        name = "accuracy" if "val_accuracy" in metrics else "score"
        value = metrics.get(f"val_{name}")
        outcome = result["status"] if value is None else f"validation {name} {value:.3f}"
        left = self._time_left()
        self.bar.update(self.task, completed=self.done, left=left)
        # On a terminal the bar says it; a log file wants a line.
        if not self.console.is_terminal:
            self.say(f"{self.done}/{self.total} {key}: {outcome}, {result['seconds']:.0f} s; {left}")

    def say(self, message: str, style: str = "") -> None:
        """A line above the bar."""
        self.console.print(Text(message, style=style), soft_wrap=True)

    def _time_left(self) -> str:
        if self.cost_left <= 0 or self.cost_done <= 0:
            return ""
        seconds = self.seconds / self.cost_done * self.cost_left / self.workers
        return f"about {format_duration(seconds)} left"


def format_duration(seconds: float) -> str:
    """3700 -> '1 h 1 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.0f} h {minutes % 60:.0f} min" if hours < 48 else f"{hours / 24:.0f} days"
