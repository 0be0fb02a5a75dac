"""The console that all verbs print to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from study.config.errors import escape_controls


class PlainConsole(Console):
    """Shows control characters of texts as escapes: no value of a study or a record can change the terminal.

    A line break stays one; a value that must not have one is escaped where it is formatted.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text, keep="\n"))

    def on_broken_pipe(self) -> None:
        """Raises the error, which rich would turn into exit code 1: `study.cli.main` ends all verbs alike."""
        raise  # rich calls this while it handles the error

    def out(self, *objects: Any, **settings: Any) -> None:
        super().out(*(escape_controls(str(each), keep="\n") for each in objects), **settings)


def build_console() -> PlainConsole:
    """Builds the console, for a terminal, a pipe or a log file."""
    # A pipe or a log file has no width, and tables must not be cut to 80 columns there. Without markup, as rich would
    # take `[in,ln]` in `sn[in,ln]` for a tag.
    return PlainConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
