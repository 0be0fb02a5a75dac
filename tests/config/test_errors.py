"""Messages: one line whatever a value holds, and never long."""

from __future__ import annotations

import pytest

from study.config.errors import UserError, escape_controls, format_value, shorten


@pytest.mark.parametrize("code", [0, 7, 9, 10, 13, 0x1B, 0x7F, 0x85, 0x9B, 0x2028, 0x2029, 0x202E, 0x2066, 0xDCFF])
def test_control_characters_are_escaped(code: int) -> None:
    escaped = escape_controls(f"a{chr(code)}b")
    assert escaped == ascii(f"a{chr(code)}b")[1:-1]
    assert str(UserError(f"{chr(code)}é")).isprintable()


def test_other_characters_stay() -> None:
    assert escape_controls("é × 学 🙂 \\n\n", keep="\n") == "é × 学 🙂 \\n\n"


@pytest.mark.parametrize("value", ["x" * 10_000, ["x" * 1000] * 1000, {str(n): n for n in range(10_000)}, 10**4000])
def test_long_values_are_cut(value: object) -> None:
    assert len(format_value(value)) < 1000
    assert len(shorten(str(value), 100)) <= 100


def test_short_values_are_shown_as_in_python() -> None:
    for value in ("sgd", ["sn", 1, 0.5], {"high": 1, "low": 0}, None, True, 1e-4):
        assert format_value(value) == str(value if not isinstance(value, str) else repr(value))
