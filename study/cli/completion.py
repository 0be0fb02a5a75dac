"""Completion of `run-study` in the shell, by argcomplete: verbs, flags, studies, scales, launchers and trials.

Switched on by `eval "$(register-python-argcomplete run-study)"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import argcomplete

from study.cli.arguments import VERBS, build_parser
from study.config.schema import LAUNCHERS
from study.plan.loading import list_configs
from study.record.layout import StudyFolder


def complete() -> None:
    """Prints what could come next, and ends the process; returns only where no shell asks."""
    argcomplete.autocomplete(build_parser(completers=_COMPLETERS), exclude=["--help", "-h"])


def _complete_trial(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The trials in the folder of the study that the command names before its verb: `--study NAME show TRIAL`."""
    if parsed_args.study is None:
        return []
    return [trial.key for trial in StudyFolder(parsed_args.out / parsed_args.study).trials()]


_COMPLETERS: dict[str, Callable[..., list[str]]] = {
    "verb": lambda **_: list(VERBS),
    "study": lambda **_: list(list_configs("studies")),
    "scale": lambda **_: list(list_configs("scales")),
    "launcher": lambda **_: list(LAUNCHERS),
    "trials": _complete_trial,
}
