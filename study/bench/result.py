"""The result of a benchmark: a table for the terminal, and JSON with versions, commit and machine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from study.record.environment import describe_environment, read_processor_name


@dataclass
class Figure:
    """One headline number. It should be at most `bar`, or at least `bar` where `at_least` is set."""

    name: str
    value: float
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value meets the bar; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass
class Result:
    """A benchmark's table (a dict per row, all with the same keys), its headline numbers and its notes."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def print_result(console: Console, result: Result, command: str) -> None:
    """Prints the command, the machine, the table, the figures with their bars, and the notes."""
    console.print(f"$ {command}\n{format_machine()}")
    if result.rows:
        console.print(_build_table(result.rows))
    if result.figures:
        rows = [
            {"figure": figure.name, "value": figure.value, "bar": _format_bar(figure),
             "": {True: "met", False: "MISSED", None: ""}[figure.met]}
            for figure in result.figures
        ]  # fmt: skip
        console.print(_build_table(rows))
    for note in result.notes:
        console.print(note, soft_wrap=True)


def write_result(path: Path, result: Result, command: str) -> None:
    """Writes the result as JSON, with versions and commit."""
    content = {
        "bench": result.name,
        "machine": format_machine(),
        "environment": describe_environment(command),
        "rows": result.rows,
        "figures": [{**asdict(figure), "met": figure.met} for figure in result.figures],
        "notes": result.notes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def format_machine() -> str:
    """Processor, number of cores and, where there is one, the accelerator."""
    import torch

    name = f"{read_processor_name()}, {os.cpu_count()} cores"
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def _build_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_format_value(value) for value in row.values()))
    return table


def _format_bar(figure: Figure) -> str:
    return "" if figure.bar is None else f"{'>=' if figure.at_least else '<='} {figure.bar:g}"


def _format_value(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
