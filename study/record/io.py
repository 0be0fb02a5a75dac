"""Reads and writes the files of a record: atomic writes, and reads that survive torn and damaged files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from study.config.yaml_input import NUMBER


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically. Raises `ValueError` for NaN and Inf, which are not valid JSON."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def nan_to_none(value: float) -> float | None:
    """The value, or None for NaN and Inf, which are not valid JSON."""
    return value if math.isfinite(value) else None


def write_yaml(path: Path, value: Any) -> None:
    """Writes YAML atomically, for readers of YAML 1.1 and 1.2."""
    write_bytes(path, yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode())


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.2 reads as numbers, too, and escapes all line breaks. PyYAML follows YAML 1.1."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({NUMBER.pattern})$"), list("-+.0123456789"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically, by rename: readers, and a kill at any moment, find the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:  # on a full disk, the part that was written would keep the disk full
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, value: Any) -> None:
    """Appends a line of JSON. After a kill has left half a line, the next one starts on a new line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(value, allow_nan=False).encode() + b"\n")


def read_attempts(path: Path) -> list[dict[str, Any]]:
    """The lines of an attempts.jsonl in order, without incomplete ones."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in _parse_lines(lines) if isinstance(line, dict)]


def file_digest(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file; None where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def quarantine(path: Path) -> Path:
    """Renames a damaged file, so that it is kept but no longer read. Returns its new path."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    os.replace(path, aside)
    return aside


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, the last one of each (epoch, name), without incomplete lines."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for row in _parse_lines(lines):
        try:
            rows[row["epoch"], row["name"]] = row
        except (KeyError, TypeError):
            continue
    return list(rows.values())


def _parse_lines(lines: list[str]) -> list[Any]:
    """The values of lines of JSON, without invalid lines. Parsing all at once is twice as fast where all are valid."""
    try:
        values: list[Any] = json.loads(f"[{','.join(lines)}]")
    except ValueError:
        values = []
    return values if len(values) == len(lines) else [value for line in lines for value in _parse_line(line)]


def _parse_line(line: str) -> list[Any]:
    try:
        return [json.loads(line)]
    except ValueError:
        return []


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"base.depth": 8}` for `{"base": {"depth": 8}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
