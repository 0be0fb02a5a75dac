"""What a benchmark leaves: a table for the terminal, JSON for a reader, and the machine both were made on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from study.record.environment import describe_environment


@dataclass
class Figure:
    """One number that is held against a bar: `value` should be at most (or, `at_least`, not under) `bar`."""

    name: str
    value: float
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass
class Result:
    """A benchmark's table, a dict a row with the same keys in every row, and its figures."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def print_result(console: Console, result: Result, command: str) -> None:
    """The table, the figures with their bars, and the machine."""
    console.print(f"$ {command}\n{machine_name()}")
    if result.rows:
        console.print(_table(result.rows))
    if result.figures:
        rows = [
            {"figure": figure.name, "value": figure.value, "bar": _bar(figure),
             "": {True: "met", False: "MISSED", None: ""}[figure.met]}
            for figure in result.figures
        ]  # fmt: skip
        console.print(_table(rows))
    for note in result.notes:
        console.print(note, soft_wrap=True)


def write_result(path: Path, result: Result, command: str) -> None:
    """Everything as JSON, with versions and commit."""
    content = {
        "bench": result.name,
        "machine": machine_name(),
        "environment": describe_environment(command),
        "rows": result.rows,
        "figures": [
            {"name": figure.name, "value": figure.value, "bar": figure.bar, "at_least": figure.at_least,
             "met": figure.met}
            for figure in result.figures
        ],
        "notes": result.notes,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine_name() -> str:
    """Processor, cores and, where there is one, the accelerator."""
    name = f"{_processor()}, {os.cpu_count()} cores"
    try:
        import torch
    except ImportError:
        return name
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_say(value) for value in row.values()))
    return table


def _bar(figure: Figure) -> str:
    return "" if figure.bar is None else f"{'>=' if figure.at_least else '<='} {figure.bar:g}"


def _say(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
