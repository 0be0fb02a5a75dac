"""Reads YAML; a mistake becomes a `UserError` of one line that names the file, the line and the column.

Values have the types of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/, section 10.3.2): `010`, `12:30:00`, `yes`
and `2020-01-01` are no numbers, booleans or dates. Merge keys (`<<`) are read, too. PyYAML only parses: its own loaders
read YAML 1.1, recurse without a limit, and expand aliases without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from study.config.errors import MAX_VALUE, UserError, describe_kind, format_value, shorten

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000
"""Number of values in a document; an alias counts as all values that it stands for."""
MAX_DEPTH = 30
"""Number of lists and mappings within each other."""
MAX_DIGITS = 40

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(rf"{_INTEGER.pattern}|[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""Numbers of YAML 1.2, and those that are refused because they start with 0."""
_OLD_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*|[0-9]+\.[0-9]*([eE][-+][0-9]+)?)")
"""Numbers as PyYAML writes them. It leaves texts such as `09` and `12e3` without quotes."""
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **{f"{sign}{name}": float(sign + name[1:]) for name in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")},
    **dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan")),
}
_TEXT_TAG = "tag:yaml.org,2002:str"
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster; some builds lack it


def read_yaml(path: Path, *, recorded: bool = False) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping. `recorded`: as in `parse_yaml`."""
    try:
        size = path.stat().st_size
        if kind := describe_kind(path):
            raise UserError(f"{path}: {kind}")
        if size > 4 * MAX_CHARACTERS:  # bytes; UTF-8 takes at most four for a character
            raise UserError(f"{path}: {size} bytes; allowed: at most {MAX_CHARACTERS} characters")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    return check_mapping(parse_yaml(text, str(path), recorded=recorded), "the file", path)


def parse_yaml(text: str, source: str, *, recorded: bool = False) -> Any:
    """Returns the value of a YAML document: None, bool, int, float, str, lists, and dicts with text as keys.

    Raises `UserError`, which is a `ValueError` of one line, for anything else, and for a document beyond the limits
    above. source: a file or a flag, named in errors. recorded: the text was written by this program, maybe by a version
    with PyYAML's rules for quotes.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{source}: {len(text)} characters; allowed: at most {MAX_CHARACTERS}")
    try:
        return _Builder(text, recorded).build_document()
    except yaml.MarkedYAMLError as error:
        kind = "" if isinstance(error, _Refused) else "not valid YAML: "
        raise UserError(f"{source}: {_format_place(error, text)}{kind}{error.problem}") from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a character that YAML does not allow
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None


def _format_place(error: yaml.MarkedYAMLError, text: str) -> str:
    """`line 3, column 5: `; empty if it is unknown."""
    mark = error.problem_mark
    if mark is None:
        return ""
    line, column = mark.line, mark.column
    if line > text.count("\n"):  # the C parser ends every text with a line break
        line, column = text.count("\n"), len(text) - text.rfind("\n") - 1
    return f"line {line + 1}, column {column + 1}: "


def check_mapping(value: Any, what: str, source: Path) -> dict[str, Any]:
    """Returns `value`. Raises `UserError` if it is not a mapping."""
    if not isinstance(value, dict):
        raise UserError(f"{source}: {what}: expected keys and values, got {format_value(value)}")
    return value


class _Builder:
    """Builds the value of a document from the events of PyYAML's parser."""

    def __init__(self, text: str, recorded: bool) -> None:
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=_PARSER)
        self.recorded = recorded
        self.anchors: dict[str, tuple[Any, int]] = {}  # value, and number of values in it
        self.count = 0

    def build_document(self) -> Any:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self._build(next(self.events), 0)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _Refused("a second document; allowed: one", after)
        return value

    def _build(self, event: Any, depth: int) -> Any:
        """Builds the value that starts with `event`."""
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:  # also within the value of its own anchor
                raise _Refused(f"*{shorten(str(event.anchor), MAX_VALUE)}: no such anchor before it", event)
            value, size = self.anchors[event.anchor]
            self._add(size, event)
            return value
        before = self.count
        self._add(1, event)
        if isinstance(event, yaml.ScalarEvent):
            value = _read_scalar(event, self.recorded)
        elif depth == MAX_DEPTH:
            raise _Refused(f"lists and mappings are nested more than {MAX_DEPTH} deep", event)
        elif event.tag is not None:
            raise _Refused(f"the tag {shorten(event.tag, MAX_VALUE)} is not allowed", event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._build(inner, depth + 1) for inner in iter(self._next, None)]
        else:
            value = self._build_mapping(depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def _build_mapping(self, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen: set[str] = set()
        for event in iter(self._next, None):
            if not isinstance(event, yaml.ScalarEvent):
                raise _Refused("a key must be text, a number, a boolean or null", event)
            key = str(self._build(event, depth + 1))
            if key in seen:
                raise _Refused(f"key {format_value(key)} appears twice", event)
            seen.add(key)
            following = next(self.events)
            value = self._build(following, depth + 1)
            if key == "<<" and event.implicit[0]:
                for mapping in reversed(value if isinstance(value, list) else [value]):  # earlier ones win
                    if not isinstance(mapping, dict):
                        raise _Refused("<<: expected a mapping, or a list of mappings", following)
                    merged |= mapping
            else:
                own[key] = value
        return {**merged, **own}

    def _next(self) -> yaml.Event | None:
        """The next event of a list or mapping; None at its end."""
        event = next(self.events)
        return None if isinstance(event, yaml.CollectionEndEvent) else event

    def _add(self, count: int, event: Any) -> None:
        self.count += count
        if self.count > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES} values, those of aliases included", event)


def _read_scalar(event: Any, recorded: bool) -> Any:
    text: str = event.value
    if re.search("[\0\ud800-\udfff]", text):  # no path, and no text of UTF-8, contains them
        raise _Refused(f"{format_value(text)}: contains a character that is not allowed", event)
    if event.tag not in (None, _TEXT_TAG):
        raise _Refused(f"the tag {shorten(event.tag, MAX_VALUE)} is not allowed", event)
    if not event.implicit[0]:  # in quotes, or tagged as text
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not (_OLD_NUMBER if recorded else NUMBER).fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise _Refused(f"{shorten(text, MAX_VALUE)}: a number of {len(text)} characters; allowed: {MAX_DIGITS}", event)
    if re.match("[-+]?0[0-9]", text):
        plain = re.sub("^([-+]?)0+(?=[0-9])", r"\1", text)
        raise _Refused(f"{text}: a number cannot start with 0; write {plain}, or '{text}' for text", event)
    value = int(text, 0) if _INTEGER.fullmatch(text) else float(text)
    if not recorded:
        value += 0  # -0.0, which would have another trial id than 0.0
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _Refused(f"{text}: a whole number beyond 64 bits", event)
    return value


class _Refused(yaml.MarkedYAMLError):
    """YAML that is valid, but not allowed."""

    def __init__(self, problem: str, event: Any) -> None:
        super().__init__(problem=problem, problem_mark=event.start_mark)
