"""Reads YAML; a mistake becomes a `UserError` of one line that names the file, the line and the column."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from study.config.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return check_mapping(parse_yaml(text, str(path)), "the file", path)


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML text. `source` is named in errors: a file, or a flag."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{source}:{where} is not valid YAML: {problem}") from None


def check_mapping(value: Any, what: str, source: Path) -> dict[str, Any]:
    """Returns `value` with its keys as strings. Raises `UserError` if it is not a mapping."""
    if not isinstance(value, dict):
        raise UserError(f"{source}: {what}: expected keys and values, got {value!r}")
    return {str(key): item for key, item in value.items()}


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-4` as a number, and refuses a key that appears twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
