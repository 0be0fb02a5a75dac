"""YAML 1.2's core schema, and limits: a document cannot take the program down, and its error is one line."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from study.config.errors import UserError
from study.config.yaml_input import MAX_DEPTH, parse_yaml, read_yaml
from study.record.io import write_yaml

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1e-4, -2E3, 1.5e+2, .5, 5., 1e, e4]", [1e-4, -2000.0, 150.0, 0.5, 5.0, "1e", "e4"]),
        ("[-0.0, -0e3, {a: -.0}]", [0.0, 0.0, {"a": 0.0}]),
        ("[0, -0, +7, 0o17, 0x1F, 0.5, 0e1]", [0, 0, 7, 15, 31, 0.5, 0.0]),
        ("[12:00:00, 4:30, 1-12:00:00, 2026-01-31]", ["12:00:00", "4:30", "1-12:00:00", "2026-01-31"]),
        ("[yes, no, on, off, y, Yes, 1_000, 0b11, '010', !!str 010]",
         ["yes", "no", "on", "off", "y", "Yes", "1_000", "0b11", "010", "010"]),
        ("[true, False, TRUE, null, ~, -.inf]", [True, False, True, None, None, -math.inf]),
        ("{2: a, true: b, 0.50: c, null: d}", {"2": "a", "True": "b", "0.5": "c", "None": "d"}),
        ("{<<: [{a: 1}, {a: 2, b: 3}], b: 4}", {"a": 1, "b": 4}),
        ("- &x {a: 1}\n- *x", [{"a": 1}, {"a": 1}]),
        ("", None),
    ],
)  # fmt: skip
def test_values_are_those_of_the_core_schema(text: str, value: Any) -> None:
    read = parse_yaml(text, "x")
    assert read == value
    assert repr(read) == repr(value)  # 1 is not true


BOMB = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}' if level else 'x'] * 10)}]\n" for level in range(10))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[16, 010]", r"line 1, column 6: 010: a number cannot start with 0; write 10, or '010' for text"),
        ("-00.5", "write -0.5, or '-00.5' for text"),
        ("{a: {01: x}}", "01: a number cannot start with 0"),
        ("9" * 5000, "a number of 5000 characters"),
        ("9" * 20, "beyond 64 bits"),
        ("&a [*a]", r"\*a: no such anchor"),
        ("a: &a {b: *a}", r"\*a: no such anchor"),
        (BOMB, "more than 100000 values, those of aliases included"),
        ("[" * 20_000, "nest"),
        ("{a: " * 20_000, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 20_000, f"nested more than {MAX_DEPTH} deep"),
        ("x" * 1_000_001, "1000001 characters; allowed: at most 1000000"),
        ("!!timestamp x", "tag:yaml.org,2002:timestamp is not allowed"),
        ("!!python/object/apply:os.getcwd []", "is not allowed"),
        ("!!set {a}", "is not allowed"),
        ('"a\\0b"', r"'a\\x00b': contains a character that is not allowed"),
        ('"\\ud800"', "not valid YAML"),
        ("\0", "not valid YAML"),
        ("\ud800", "not valid YAML"),
        ("\x1b[1m", "not valid YAML"),
        ("{a: 1, b: 2, a: 3}", "column 14: key 'a' appears twice"),
        ("{2: a, '2': b}", "key '2' appears twice"),
        ("? [a]\n: b", "a key must be text"),
        ("<<: 3", "expected a mapping"),
        ("a\n---\nb", "line 2, column 1: a second document"),
        ("a: [", "line 1, column 5: not valid YAML"),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_anything_else_is_an_error_of_one_short_line_at_once(text: str, problem: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=problem) as caught:
        parse_yaml(text, "x")
    assert time.process_time() - started < 2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_twenty_thousand_keys_are_read_at_once() -> None:
    started = time.process_time()
    assert len(parse_yaml("\n".join(f"k{number}: {number}" for number in range(20_000)), "x")) == 20_000
    assert time.process_time() - started < 5


def test_only_a_file_of_limited_size_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_text("x" * 4_000_001)
    for name, problem in (
        ("pipe", "is a named pipe, not a file"),
        ("folder", "is a folder, not a file"),
        ("large", "4000001 bytes"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(UserError, match=problem):
            read_yaml(tmp_path / f"{name}.yaml")


texts = st.text(max_size=12).filter(lambda text: "\0" not in text) | st.from_regex(
    r"[-+]?[0-9][0-9.eEoxb_:]{0,6}", fullmatch=True
)
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | texts
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(tree=st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), trees, max_size=4))
@settings(max_examples=60, database=None, phases=[Phase.generate], deadline=None)
def test_what_a_record_writes_is_read_back_with_every_rule_for_quotes(tmp_path_factory: Any, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    write_yaml(path, tree)
    assert read_yaml(path, recorded=True) == tree
    assert read_yaml(path) == tree


def test_texts_that_older_versions_wrote_without_quotes_stay_texts() -> None:
    assert parse_yaml("[0912, 12e34567, 0o17, 1.0e-05, 7]", "x", recorded=True) == ["0912", "12e34567", "0o17", 1e-5, 7]
