"""Draws a snapshot of a study on a terminal: progress, failures by cause, interim answers, running trials."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from study.cli.study_observer import STATES, RunningTrial, StudySnapshot, TrialStatus
from study.config.errors import escape_controls, shorten
from study.config.wording import format_count, format_plural

STYLES = {"failed": "red", "damaged": "red", "diverged": "yellow", "stale": "yellow"}
MAX_CAUSES = 5  # of failures
MAX_REASON = 1000  # characters
BAR_WIDTH = 60  # columns
VARIABLE_PARTS = {  # of reasons that have one cause; a search that began within a word would take quadratic time
    r"(?<![\w.~-])[\w.~-]*[/\\][^\s'\",;:)]*": "PATH",
    r"(?<![\w.-])[\w.-]+-r\d+\b": "TRIAL",
    r"0x[0-9a-fA-F]+": "#",
    r"\d+(\.\d+)?(e[-+]?\d+)?": "#",
}


class LiveView:
    """A snapshot as a `rich` renderable, in as many lines as the terminal has."""

    def __init__(self, snapshot: StudySnapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        study, width = self.snapshot, options.max_width
        head, *rest = [*_draw_progress(study), *_draw_problems(study.problems, width),
                       *_draw_answers(study.answers, study.answers_error)]  # fmt: skip
        if console.is_terminal:
            room = console.height - len(rest) - 5  # the head, the bar, a blank line, one for "and N more", the prompt
            rest += _draw_running(study.running[: max(0, room)], study.states.get("running", 0), width)
        for line in (head, *rest):
            line.plain = escape_controls(line.plain)  # reasons, places and levels are what a record says
        fitted = Text("\n", no_wrap=True, overflow="ellipsis")
        yield fitted.join([Text(), head])
        if console.is_terminal:
            yield ProgressBar(total=max(1, study.total), completed=study.finished, width=min(width, BAR_WIDTH))
            yield Segment.line()
        yield fitted.join(rest)


def group_problems(problems: Iterable[TrialStatus]) -> list[list[TrialStatus]]:
    """Problems grouped by state and cause, the most frequent first."""
    groups: dict[tuple[str, str], list[TrialStatus]] = {}
    for problem in problems:
        groups.setdefault((problem.state, normalize_reason(problem.reason)), []).append(problem)
    return sorted(groups.values(), key=len, reverse=True)


def normalize_reason(reason: str) -> str:
    """A reason without the paths, trial names, addresses and numbers that differ between trials."""
    for pattern, word in VARIABLE_PARTS.items():
        reason = re.sub(pattern, word, reason)
    return reason


def format_problems(group: Sequence[TrialStatus], width: int | None = None) -> str:
    """`3 failed: MemoryError: ... (sn-1234-r0)`: reason and key of the first one, cut to `width` columns."""
    reason = escape_controls(shorten(group[0].reason or "no reason given", MAX_REASON))
    head, key = f"{len(group)} {group[0].state}: ", escape_controls(group[0].key)
    if width is not None:
        key = _shorten(key, max(12, width // 3, width - len(head) - len(reason) - 3))
        reason = _shorten(reason, max(12, width - len(head) - len(key) - 3), keep=0)
    return f"{head}{reason} ({key})"


def format_time_left(seconds: float | None) -> str:
    """`about 3 min left`; empty if unknown."""
    return "" if seconds is None else f"about {format_duration(seconds)} left"


def format_waiting(waiting: Mapping[str, int]) -> str:
    """`in the queue: 3 trials PENDING (Priority)`; empty if none waits."""
    parts = [f"{format_plural(count, 'trial')} {reason}" for reason, count in sorted(waiting.items())]
    return f"in the queue: {', '.join(parts)}" if parts else ""


def format_duration(seconds: float) -> str:
    """5700 -> '1 h 35 min'."""
    if round(seconds) < 600:
        minutes, seconds = divmod(round(seconds), 60)
        return " ".join([f"{minutes} min"] * bool(minutes) + [f"{seconds} s"] * bool(seconds or not minutes))
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 90 * 60:
        return f"{60 * hours + minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{seconds / 86400:.0f} days"


def _draw_progress(study: StudySnapshot) -> list[Text]:
    head = Text.assemble((study.name, "bold"), f"  {format_count(study.finished, study.total, study.repeated)}")
    head.append(f", {left}" if (left := format_time_left(study.seconds_left)) else "")
    counts = Text(", ").join(
        Text(f"{study.states[state]} {state}", style=STYLES.get(state, ""))
        for state in STATES if study.states.get(state)
    )  # fmt: skip
    return [head, counts, *map(Text, filter(None, (format_waiting(study.waiting), study.note)))]


def _draw_problems(problems: Sequence[TrialStatus], width: int) -> list[Text]:
    """One line per cause."""
    groups = group_problems(problems)
    lines = [Text()] if groups else []
    for group in groups[:MAX_CAUSES]:
        lines.append(Text(format_problems(group, width)))
        lines[-1].highlight_regex(r"^[^:]+:", STYLES.get(group[0].state, "yellow"))
    if len(groups) > MAX_CAUSES:
        more = format_plural(len(groups) - MAX_CAUSES, "more cause")
        lines.append(Text(f"and {more}; `status` lists all", style="dim"))
    return lines


def _draw_answers(answers: Mapping[str, Any] | None, error: str) -> list[Text]:
    if error:
        return [Text(), Text(f"answers: not computed: {error}", style="yellow")]
    if not answers or not answers["questions"]:
        return []
    head = f"answers after {format_plural(answers['n'], 'trial')}, {answers['confidence'] * 100:g} % intervals"
    lines = [Text(), Text(head, style="dim")]
    for question in answers["questions"]:
        lines.append(Text.assemble((question["name"], "bold"), f": {question['verdict']}"))
        lines += [Text(f"  {effect}") for effect in question["effects"]]
    return lines


def _draw_running(trials: Sequence[RunningTrial], total: int, width: int) -> list[Text]:
    """One line per trial, and how many of `total` are not shown."""
    if not trials:
        return []
    progress = [_format_running(trial) for trial in trials]
    column = max(map(len, progress))
    lines = [Text()]
    for text, trial in zip(progress, trials, strict=True):
        place = f"  {trial.place}" if trial.place else ""
        lines.append(Text(f"{text:{column}}  {_shorten(trial.key, max(12, width - column - 2 - len(place)))}{place}"))
    if total > len(trials):
        lines.append(Text(f"and {total - len(trials)} more", style="dim"))
    return lines


def _format_running(trial: RunningTrial) -> str:
    """`epoch 3 of 8, 12 s`."""
    of = f" of {trial.epochs}" if trial.epochs else ""
    progress = "starting" if trial.epoch is None else f"epoch {trial.epoch}{of}"
    return progress if trial.seconds is None else f"{progress}, {format_duration(trial.seconds)}"


def _shorten(text: str, width: int, keep: int = 11) -> str:
    """Text cut to a width before its last `keep` characters: in a trial's key, its hash and replicate."""
    if len(text) <= width:
        return text
    return f"{text[: width - keep - 1]}…{text[len(text) - keep :]}"
