"""The command line: runs a verb; exit codes and one-line errors.

What a verb needs is imported only when it runs, so that `--help` is instant.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from study.cli.arguments import build_parser, parse_arguments
from study.cli.interrupts import run_interruptible
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import (
    DONE,
    MAX_MESSAGE,
    READER_LEFT,
    UserError,
    allowed_names,
    describe_error,
    shorten,
)
from study.plan.loading import list_configs
from study.record.environment import git_commit, hide_passwords, package_version

if TYPE_CHECKING:
    from study.plan.job import Job


def main(
    arguments: Sequence[str] | None = None,
    *,
    space: ChoiceSpace = NORMALIZATION,
    build_network: Callable[[Job], Any] | None = None,
) -> int:
    """Runs one command (default: `sys.argv`) and returns its exit code.

    0: done. 1: some trials failed. 2: bad input. 130: interrupted. 141: the reader of the output has left.

    Args:
        arguments: The command line, without the program's name.
        space: What layers choose from.
        build_network: A function of a module that builds a trial's network, for another choice than normalization.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be anything in another program
            stream.reconfigure(errors="backslashreplace")  # for terminals without Unicode, and names that are no text
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]  # W&B would refuse an empty value; processes that this one starts do not see it either
    return run_interruptible(lambda: run_reporting_errors(lambda: _run_command(arguments, space, build_network)))


def run_reporting_errors(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; an error that is not a bug is printed as one line."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _has_reader_left(sys.stdout.fileno()):  # a process that this one started has ended
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return READER_LEFT
    except (UserError, OSError) as error:
        code, line = describe_error(error)
        print(f"error: {shorten(hide_passwords(line), MAX_MESSAGE)}", file=sys.stderr)
        return code


def _has_reader_left(output: int) -> bool:
    """Whether nothing reads what is written to a file descriptor any more, as after `head`."""
    poll = select.poll()
    poll.register(output, 0)  # errors are always reported
    return bool(poll.poll(0))


def _run_command(arguments: list[str], space: ChoiceSpace, build_network: Callable[[Job], Any] | None) -> int:
    if arguments[:1] == ["bench"]:
        from study.bench.__main__ import run as run_benchmark

        return run_benchmark(arguments[1:])
    options = parse_arguments(arguments)
    options.space, options.build_network = space, build_network
    if options.help:
        print(build_parser(options.verb).format_help(), end="")  # `print_help` hides that the reader has left
        return DONE
    if options.version:
        print(_format_version())
        return DONE
    from study.cli import commands

    if options.study is None:
        if options.verb is None:
            return commands.list_studies()
        raise UserError(f"{options.verb}: --study is required; {allowed_names('', list_configs('studies'))}")
    return commands.COMMANDS[options.verb or "run"](options)


def _format_version() -> str:
    """`normalizer-study 0.1.0 (commit 1a2b3c)`."""
    name, commit = "normalizer-study", git_commit()
    return f"{name} {package_version(name) or 'not installed'}" + (f" (commit {commit})" if commit else "")
