"""What a terminal shows of a study at one moment: progress, time left, failures by cause, answers so far, what runs."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from study.record.io import read_json
from study.record.layout import FINISHED, TrialFolder

STATES = ("done", "diverged", "pruned", "running", "submitted", "queued", "stale", "failed", "damaged", "planned")
STYLES = {"failed": "red", "damaged": "red", "diverged": "yellow", "stale": "yellow"}
ROWS = 10  # of trials that run
CAUSES = 5  # of failures
BAR = 60  # columns
DIFFERS = {  # between reasons of one cause
    r"[\w.~-]*[/\\][^\s'\",;:)]*": "PATH",
    r"[\w.-]+-r\d+\b": "TRIAL",
    r"0x[0-9a-fA-F]+": "#",
    r"\d+(\.\d+)?(e[-+]?\d+)?": "#",
}
TAIL = 2**14  # bytes; holds the last rows of a metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class TrialProblem:
    """Why a trial has no result to compare: its state, or `trying again`, and the reason."""

    key: str
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial at work; epochs: how many it has to go through, where that is known."""

    record: TrialFolder
    epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudySnapshot:
    """A study at one moment; drawn by a `rich` console, in as many lines as the terminal has.

    states: trials by state. answers: what `compute_interim_answers` returns.
    note: a line on who is at work, or waited for.
    """

    name: str
    total: int
    states: Mapping[str, int]
    left: str = ""
    note: str = ""
    troubles: Sequence[TrialProblem] = ()
    answers: Mapping[str, Any] | None = None
    answers_error: str = ""
    running: Sequence[Running] = field(default=())

    @property
    def finished(self) -> int:
        """Trials with a result."""
        return sum(self.states.get(state, 0) for state in FINISHED)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, console.height
        lines = [*self._head(), *_draw_troubles(self.troubles, width), *self._draw_answers()]
        rest_of_screen = height - len(lines) - 4  # the bar, a blank line, one for more, the prompt
        room = rest_of_screen if console.is_terminal else 0
        head, *rest = [*lines, *_draw_running(self.running, width, min(room, ROWS))]
        yield Text()
        yield _fit(head)
        if console.is_terminal:
            yield ProgressBar(total=max(1, self.total), completed=self.finished, width=min(width, BAR))
            yield Segment.line()
        yield from map(_fit, rest)

    def _head(self) -> list[Text]:
        head = Text.assemble((self.name, "bold"), f"  {self.finished} of {self.total} trials have a result")
        head.append(f", {self.left}" if self.left else "")
        counts = Text(", ").join(
            Text(f"{self.states[state]} {state}", style=STYLES.get(state, "")) for state in STATES
            if self.states.get(state)
        )  # fmt: skip
        return [head, counts, *[Text(self.note)] * bool(self.note)]

    def _draw_answers(self) -> list[Text]:
        if self.answers_error:
            return [Text(), Text(f"answers: not computed: {self.answers_error}", style="yellow")]
        if not self.answers or not self.answers["questions"]:
            return []
        head = f"answers after {self.answers['n']} trials, {self.answers['confidence'] * 100:g} % intervals"
        lines = [Text(), Text(head, style="dim")]
        for question in self.answers["questions"]:
            lines.append(Text.assemble((question["name"], "bold"), f": {question['verdict']}"))
            lines += [Text(f"  {effect}") for effect in question["effects"]]
        return lines


def group_problems(troubles: Iterable[TrialProblem]) -> list[list[TrialProblem]]:
    """Troubles of one cause together, the most frequent first."""
    groups: dict[tuple[str, str], list[TrialProblem]] = {}
    for trouble in troubles:
        groups.setdefault((trouble.state, normalize_reason(trouble.reason)), []).append(trouble)
    return sorted(groups.values(), key=len, reverse=True)


def normalize_reason(reason: str) -> str:
    """What the reasons of one cause have in common: paths, names of trials, addresses and numbers are left out."""
    for pattern, word in DIFFERS.items():
        reason = re.sub(pattern, word, reason)
    return reason


def format_problems(group: Sequence[TrialProblem]) -> str:
    """`failed: 3 trials: MemoryError: ... (the first: sn-1234-r0)`, or the one trial and its reason."""
    first = group[0]
    if len(group) == 1:
        return f"{first.state}: {first.key}: {first.reason}"
    return f"{first.state}: {len(group)} trials: {first.reason} (the first: {first.key})"


def describe_running(running: Running) -> tuple[str, str]:
    """How far a trial is (`epoch 3 of 8, 12 s`), and where it runs if that is not here."""
    state = read_json(running.record.state) or {}
    epoch = last_epoch(running.record.metrics)
    of = f" of {running.epochs}" if running.epochs else ""
    parts = ["starting" if epoch is None else f"epoch {epoch}{of}"]
    if isinstance(state.get("started"), (int, float)):
        parts.append(format_duration(max(0.0, time.time() - state["started"])))
    place = state.get("job") or state.get("host")
    return ", ".join(parts), "" if place in (None, platform.node()) else str(place)


def last_epoch(metrics: Path) -> int | None:
    """The last epoch that a trial has finished, read from the end of its metrics; None where there is none."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["epoch"])
        except (ValueError, KeyError, TypeError):  # torn, or cut
            continue
    return None


def forecast_left(seconds: float, cost_done: float, cost_left: float, places: int) -> str:
    """`about 3 min left`, from what finished trials took and cost; empty where it is not known."""
    if cost_left <= 0 or cost_done <= 0:
        return ""
    return f"about {format_duration(seconds / cost_done * cost_left / max(1, places))} left"


def format_duration(seconds: float) -> str:
    """3700 -> '1 h 1 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.0f} h {minutes % 60:.0f} min" if hours < 48 else f"{hours / 24:.0f} days"


def _draw_troubles(troubles: Sequence[TrialProblem], width: int) -> list[Text]:
    """A line a cause, in which the name of the trial gives way to the reason."""
    groups = group_problems(troubles)
    lines = [Text()] if groups else []
    for group in groups[:CAUSES]:
        first = group[0]
        count = f"{len(group)} {first.state}: "
        reason = first.reason.splitlines()[0] if first.reason else "no reason given"
        key = _shorten(first.key, max(12, width // 3, width - len(count) - len(reason) - 3))
        reason = _shorten(reason, max(12, width - len(count) - len(key) - 3), keep=0)
        lines.append(Text.assemble((count, STYLES.get(first.state, "yellow")), f"{reason} ", (f"({key})", "dim")))
    if len(groups) > CAUSES:
        lines.append(Text(f"and {len(groups) - CAUSES} more causes; status has them", style="dim"))
    return lines


def _draw_running(running: Sequence[Running], width: int, room: int) -> list[Text]:
    """As many trials as there is room for."""
    if not running or room < 1:
        return []
    rows = [(*describe_running(item), item.record.key) for item in running[:room]]
    column = max(len(how) for how, _, _ in rows)
    lines = [Text()]
    for how, place, key in rows:
        tail = f"  {place}" if place else ""
        lines.append(Text(f"{how:{column}}  {_shorten(key, max(12, width - column - 2 - len(tail)))}{tail}"))
    if len(running) > room:
        lines.append(Text(f"and {len(running) - room} more", style="dim"))
    return lines


def _shorten(text: str, width: int, keep: int = 11) -> str:
    """Cut to a width, before the last `keep` letters: of a trial's key its hash and replicate."""
    if len(text) <= width:
        return text
    return f"{text[: width - keep - 1]}…{text[len(text) - keep :]}"


def _fit(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
