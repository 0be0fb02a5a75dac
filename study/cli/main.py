"""The command line: verbs and flags, exit codes, one-line errors, signal handlers.

What a verb needs is imported only when it runs, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import io
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import (
    BAD_INPUT,
    DONE,
    FULL_DISK,
    INTERRUPTED,
    MAX_MESSAGE,
    MAX_VALUE,
    NO_SPACE,
    SOME_FAILED,
    ArgumentParser,
    UserError,
    allowed_names,
    escape_controls,
    shorten,
)
from study.config.schema import LAUNCHERS
from study.plan.loading import DEFAULT_SCALE, list_configs
from study.record.environment import git_commit, hide_passwords, package_version, program_name

if TYPE_CHECKING:
    from study.plan.job import Job

VERBS = {
    "run": "plan, train the trials that have no result yet, and write the report (the default verb)",
    "plan": "show every trial with its batch sizes, learning rate, network size and estimated time",
    "status": "show how many trials of every cell are done, what runs, what failed and why",
    "report": "write the report from the existing records",
    "dashboard": "create or update the study's pages on W&B",
    "diff": "show how two trials differ: config, versions, result",
    "bench": "measure this machine; without a name, list the benchmarks",
}
STUDY_VERBS = tuple(verb for verb in VERBS if verb != "bench")  # `bench` has flags of its own


def _flag(*verbs: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The verbs that use a flag (default: all), and its argparse settings."""
    return verbs or STUDY_VERBS, settings


# A small, frozen set: everything else is set in YAML or by --set. Every verb accepts the flags of `run`, so that the
# command of a run can be repeated with another verb.
FLAGS = {
    "--help": _flag(action="store_true", help="show this help; VERB --help shows the flags of one verb"),
    "--version": _flag(action="store_true", help="show the version and the commit"),
    "--study": _flag(metavar="NAME", help="a listed study, or a YAML file; without arguments, the list is printed"),
    "--scale": _flag(metavar="NAME", default=DEFAULT_SCALE, help="size of data and networks (default: %(default)s)"),
    "--set": _flag(metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable"),
    "--out": _flag(metavar="DIR", type=Path, default=Path("runs"), help="folder of results (default: %(default)s)"),
    "--workers": _flag("run", "plan", metavar="N", type=int,
                       help="trials at once (default: one per core, or run.trials_per_device per GPU)"),
    "--launcher": _flag("run", metavar="NAME",
                        help="where trials run: local, slurm or ray (default: local)"),
    "--storage": _flag("run", metavar="URL", help="Optuna storage (default: SQLite in the study's folder)"),
    "--retry-failed": _flag("run", action="store_true", help="run failed trials again"),
    "--detach": _flag("run", action="store_true",
                      help="run in the background; the same command without --detach waits for the results"),
    "--watch": _flag("status", action="store_true", help="keep showing the status until the study has ended"),
    "--serve": _flag("report", action="store_true",
                     help="serve the report on this machine and rewrite it when records change; Ctrl-C ends it"),
    "--compare": _flag("report", metavar="DIR", nargs="+", type=Path,
                       help="folders of other studies, to write a page that shows them side by side"),
}  # fmt: skip


def main(
    arguments: Sequence[str] | None = None,
    *,
    space: ChoiceSpace = NORMALIZATION,
    build_network: Callable[[Job], Any] | None = None,
) -> int:
    """Runs one command (default: `sys.argv`) and returns its exit code.

    0: done. 1: some trials failed. 2: bad input. 130: interrupted.

    Args:
        arguments: The command line, without the program's name.
        space: What layers choose from.
        build_network: A function of a module that builds a trial's network, for another choice than normalization.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be anything in another program
            stream.reconfigure(errors="backslashreplace")  # for terminals without Unicode, and names that are no text
    try:
        return _run_command(arguments, space, build_network)
    except UserError as error:
        print(f"error: {shorten(hide_passwords(str(error)), MAX_MESSAGE)}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = escape_controls(str(error.filename or "the disk of the results"))
        print(f"error: {NO_SPACE} {where}. Free some space and run the same command to resume.", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt:
        print("Interrupted. Run the same command to resume.", file=sys.stderr)
        return INTERRUPTED


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, with flags before or after the verb. UserError for anything that is not allowed."""
    for argument in arguments:  # they are written into records, which are UTF-8
        if argument != argument.encode(errors="replace").decode():
            raise UserError(f"{argument}: is not valid UTF-8")
    options, unknown = build_parser().parse_known_intermixed_args(arguments)
    options.arguments = list(arguments)
    verb = options.verb or "run"
    if unknown:
        raise UserError(f"{unknown[0]}: unknown flag; {allowed_names(unknown[0], FLAGS)}")
    if verb not in VERBS:
        raise UserError(f"{verb}: unknown verb; {allowed_names(verb, VERBS)}")
    if verb == "bench":
        raise UserError("bench: must come first on the command line; its flags follow, see `bench --help`")
    if options.trials and verb != "diff":
        raise UserError(f"{options.trials[0]}: unexpected argument; {verb} takes no trials")
    for flag, (verbs, _) in FLAGS.items():
        if not {verb, "run"}.intersection(verbs) and getattr(options, flag.lstrip("-")):
            raise UserError(f"{flag}: belongs to {verbs[0]}, not to {verb}; nearest: {verbs[0]} {flag}")
    if options.launcher is not None and options.launcher not in LAUNCHERS:
        raise UserError(f"--launcher {options.launcher}: unknown; {allowed_names(options.launcher, LAUNCHERS)}")
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    return options


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; with a verb, one that prints the help of this verb."""
    parser = ArgumentParser(
        prog=f"{program_name()} {verb or ''}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=VERBS[verb] if verb else "Trains every cell of a study and reports what its normalization layers "
        "chose.\n\nverbs:\n" + "\n".join(f"  {name:11}{text}" for name, text in VERBS.items()),
        epilog="Without arguments: lists the studies and scales. An interrupted command resumes when it is run again.",
        allow_abbrev=False,
        add_help=False,
    )  # fmt: skip
    if verb is None:
        parser.add_argument("verb", nargs="?", metavar="VERB", help="one of: " + ", ".join(VERBS))
    if verb in (None, "diff"):
        parser.add_argument("trials", nargs="*", metavar="TRIAL", help="for diff: two trials, each as ID-rREPLICATE")
    for flag, (verbs, settings) in FLAGS.items():
        if verb is None or verb in verbs:
            parser.add_argument(*["-h"] * (flag == "--help"), flag, **settings)
    return parser


def install_signal_handlers() -> None:
    """Has SIGTERM and SIGHUP interrupt the program as Ctrl-C does; SIGHUP stays ignored under nohup."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_terminate)


def _on_terminate(*_: object) -> None:
    """Raises KeyboardInterrupt once: a repeated signal must not interrupt the trials' last checkpoints."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_command(arguments: list[str], space: ChoiceSpace, build_network: Callable[[Job], Any] | None) -> int:
    if arguments[:1] == ["bench"]:
        from study.bench.__main__ import run as run_benchmark

        return run_benchmark(arguments[1:])
    for argument in arguments:
        if re.search("[\0\ud800-\udfff]", argument):
            raise UserError(f"{shorten(argument, MAX_VALUE)}: contains a character that is not allowed")
    options = parse_arguments(arguments)
    options.space, options.build_network = space, build_network
    if options.help:
        build_parser(options.verb).print_help()
        return DONE
    if options.version:
        print(_format_version())
        return DONE
    from study.cli import commands

    if options.study is None:
        if options.verb is None:
            return commands.list_studies()
        raise UserError(f"{options.verb}: --study is required; {allowed_names('', list_configs('studies'))}")
    install_signal_handlers()
    return commands.COMMANDS[options.verb or "run"](options)


def _format_version() -> str:
    """`normalizer-study 0.1.0 (commit 1a2b3c)`."""
    name, commit = "normalizer-study", git_commit()
    return f"{name} {package_version(name) or 'not installed'}" + (f" (commit {commit})" if commit else "")
