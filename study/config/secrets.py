"""Settings that may hold secrets: they are not written into records, and neither are they in recorded commands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from study.config.schema import LaunchConfig

SECRET_SETTINGS = {name for name, field in LaunchConfig.model_fields.items() if field.exclude}
"""Fields of `launch`. Pydantic leaves them out when it dumps a study."""


def is_secret_setting(override: str) -> bool:
    """Whether `key=value` sets one of `SECRET_SETTINGS`, or the whole section."""
    names = override.partition("=")[0].split(".")
    return names == ["launch"] or names[names[0] == "launch"] in SECRET_SETTINGS


def hide_secret_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line with `***`, which is not valid YAML, for the values of secret settings."""
    shown = []
    for flag, argument in pairwise(["", *arguments]):
        start = "--set=" if argument.startswith("--set=") else ""
        setting = argument.removeprefix(start)
        is_secret = (start or flag == "--set") and is_secret_setting(setting)
        shown.append(f"{start}{setting.partition('=')[0]}=***" if is_secret else argument)
    return shown
