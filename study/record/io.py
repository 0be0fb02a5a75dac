"""Reads and writes files of a study: atomic writes, and reads that survive torn and damaged files of any size."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from pydantic_core import from_json

from study.config.errors import describe_kind
from study.config.yaml_input import NUMBER

MAX_JSON_BYTES = 2**26


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises `OSError` for anything else: opening a pipe would wait for a writer."""
    if kind := describe_kind(path):
        raise OSError(kind)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises `OSError` for anything else, and for a file that is larger."""
    with open_file(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(f"larger than {max_bytes // 2**20} MiB")
    return data


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of limited size and depth, or None where the file is missing or damaged."""
    try:
        value = from_json(read_file(path, MAX_JSON_BYTES))
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
        lines = read_file(path, MAX_JSON_BYTES).splitlines()
    except OSError:
        return []
    return [values for line in lines if isinstance(values := _parse_line(line), dict)]


def file_digest(path: Path) -> dict[str, Any] | None:
    """Size and SHA-256 of a file; None where it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with open_file(path) as file:
            while data := file.read(2**20):
                digest.update(data)
                size += len(data)
    except OSError:
        return None
    return {"bytes": size, "sha256": digest.hexdigest()}


def quarantine(path: Path) -> Path:
    """Renames a damaged file, so that it is kept but no longer read. Returns its new path."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    os.replace(path, aside)
    return aside


def _parse_line(line: bytes) -> Any:
    """The value of a line of JSON; None where it is incomplete."""
    try:
        return from_json(line)
    except ValueError:
        return None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"base.depth": 8}` for `{"base": {"depth": 8}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
