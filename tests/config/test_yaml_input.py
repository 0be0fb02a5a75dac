"""YAML as experiment files need it."""

from __future__ import annotations

from study.config.yaml_input import parse_yaml


def test_scientific_notation_is_a_number() -> None:
    assert parse_yaml("[1e-4, -2E3, 1.5e+2, 1e, e4]", "x") == [1e-4, -2000.0, 150.0, "1e", "e4"]
