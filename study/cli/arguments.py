"""Verbs and flags of the command line, and their help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.config.errors import (
    MAX_VALUE,
    ArgumentParser,
    UserError,
    allowed_names,
    escape_controls,
    parse_count,
    shorten,
)  # fmt: skip
from study.config.schema import LAUNCHERS, MAX_PROCESSES
from study.plan.loading import DEFAULT_SCALE, is_study_file
from study.record.environment import program_name

VERBS = {
    "run": "plan, train the trials that have no result yet, and write the report (the default verb)",
    "plan": "show every trial with its batch sizes, learning rate, network size and estimated time",
    "status": "show how many trials of every cell are done, what runs, what failed and why",
    "report": "write the report from the existing records",
    "sync": "upload to W&B what the records hold and the server lacks",
    "dashboard": "create or update the study's pages on W&B",
    "diff": "show how two trials differ: config, versions, result",
    "show": "show one trial: config, learning curves, choices, log",
    "bench": "measure this machine; without a name, list the benchmarks",
}
STUDY_VERBS = tuple(verb for verb in VERBS if verb != "bench")  # `bench` has flags of its own
TRIAL_VERBS = ("diff", "show")
HINTS = {  # for words that are no verbs, what there is instead
    ("list", "ls", "studies", "scales"): "a command without arguments lists the studies and scales",
    ("rm", "remove", "delete", "clean"): "no verb deletes results: each study is one folder below --out",
    ("stop", "cancel", "kill"): "Ctrl-C, or SIGTERM, ends a run; the same command resumes it",
    ("start", "train", "resume", "continue"): "`run` trains what has no result yet",
    ("watch", "progress", "tail"): "`status --watch` follows a study",
    ("compare",): "`report --compare` shows studies side by side, `diff` two trials",
    ("serve", "open", "view"): "`report --serve` serves the report",
    ("upload", "push"): "`sync` uploads what is not on W&B",
    ("help",): "--help lists the verbs and flags",
}


def _flag(*verbs: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The verbs that use a flag (default: all), and its argparse settings."""
    return verbs or STUDY_VERBS, settings


# A small, frozen set: everything else is set in YAML or by --set. Every verb accepts the flags of `run`, so that the
# command of a run can be repeated with another verb.
FLAGS = {
    "--help": _flag(action="store_true", help="show this help; VERB --help shows the flags of one verb"),
    "--version": _flag(action="store_true", help="show the version and the commit"),
    "--study": _flag(metavar="NAME", help="a listed study, or a YAML file; without arguments, the list is printed"),
    "--scale": _flag(metavar="NAME", help="size of data and networks (default: that of the study's last run; for run, "
                     f"{DEFAULT_SCALE})"),
    "--set": _flag(metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable"),
    "--out": _flag(metavar="DIR", type=Path, default=Path("runs"), help="folder of results (default: %(default)s)"),
    "--workers": _flag("run", "plan", metavar="N",
                       help="trials at once (default: one per core, or run.trials_per_device per GPU)"),
    "--launcher": _flag("run", metavar="NAME",
                        help="where trials run: local, slurm, ray or env (default: local)"),
    "--storage": _flag("run", metavar="URL", help="Optuna storage (default: SQLite in the study's folder)"),
    "--retry-failed": _flag("run", action="store_true", help="run failed trials again"),
    "--detach": _flag("run", action="store_true",
                      help="run in the background; the same command without --detach waits for the results"),
    "--watch": _flag("status", action="store_true", help="keep showing the status until the study has ended"),
    "--serve": _flag("report", action="store_true",
                     help="serve the report on this machine and rewrite it when records change, without figures "
                     "as files; Ctrl-C ends it"),
    "--no-images": _flag("report", action="store_true",
                         help="write no figures as SVG and PDF, as with --serve; they take a minute"),
    "--compare": _flag("report", metavar="DIR", nargs="+", type=Path,
                       help="folders of other studies, to write a page that shows them side by side"),
}  # fmt: skip


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line, with flags before or after the verb. UserError for anything that is not allowed."""
    for argument in arguments:  # records are UTF-8, and no path contains NUL
        if re.search("[\0\ud800-\udfff]", argument):
            raise UserError(f"{shorten(argument, MAX_VALUE)}: contains a character that is not allowed")
    options, unknown = build_parser().parse_known_intermixed_args(arguments)
    options.arguments = list(arguments)
    verb = options.verb or "run"
    for path in (options.out, options.study, *(options.compare or ())):
        if path is not None and escape_controls(str(path)) != str(path):  # it is a name in many lines that are printed
            raise UserError(f"{shorten(str(path), MAX_VALUE)}: a path with line breaks or control characters")
    if unknown:
        raise UserError(f"{unknown[0]}: unknown flag; {allowed_names(unknown[0], FLAGS)}")
    if verb not in VERBS:
        hint = next((text for words, text in HINTS.items() if verb in words), allowed_names(verb, VERBS))
        raise UserError(f"{verb}: unknown verb; {_find_flag(verb) or hint}")
    if verb == "bench":
        raise UserError("bench: must come first on the command line; its flags follow, see `bench --help`")
    if options.trials and verb not in TRIAL_VERBS:
        first = options.trials[0]
        hint = _find_flag(first) or f"{verb} takes no trials, and a setting is given as --set KEY=VALUE"
        raise UserError(f"{first}: unexpected argument; {hint}")
    for flag, (verbs, _) in FLAGS.items():
        if not {verb, "run"}.intersection(verbs) and getattr(options, flag.lstrip("-").replace("-", "_")):
            raise UserError(f"{flag}: belongs to {verbs[0]}, not to {verb}; nearest: {verbs[0]} {flag}")
    if options.launcher is not None and options.launcher not in LAUNCHERS:
        raise UserError(f"--launcher {options.launcher}: unknown; {allowed_names(options.launcher, LAUNCHERS)}")
    for setting in options.set:
        key, _, value = setting.partition("=")
        if f"--{key}" in FLAGS and key != "launcher":  # which is also a setting
            raise UserError(f"--set {shorten(setting, MAX_VALUE)}: is a flag: --{shorten(f'{key} {value}', MAX_VALUE)}")
    if options.workers is not None:
        options.workers = parse_count(options.workers, f"--workers {options.workers}", MAX_PROCESSES)
    return options


def _find_flag(word: str) -> str:
    """What to say about a setting or a study that is given without its flag; empty for other words."""
    if "=" in word:
        return f"a setting is given as --set {word}"
    return f"a study is named by --study {word}" if is_study_file(word) else ""


def build_parser(
    verb: str | None = None, completers: Mapping[str, Callable[..., list[str]]] | None = None
) -> argparse.ArgumentParser:
    """The parser of the whole command line; with a verb, one that prints the help of this verb.

    completers: for arguments by their names, functions for completion in the shell (`study.cli.completion`).
    """
    parser = ArgumentParser(
        prog=f"{program_name()} {verb or ''}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=VERBS[verb] if verb else "Trains every cell of a study and reports what its normalization layers "
        "chose.\n\nverbs:\n" + "\n".join(f"  {name:11}{text}" for name, text in VERBS.items()),
        epilog="Without arguments: lists the studies and scales. An interrupted command resumes when it is run again.",
        allow_abbrev=False,
        add_help=False,
    )  # fmt: skip

    def add(*names: str, **settings: Any) -> None:
        action = parser.add_argument(*names, **settings)
        if completers and action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]  # argcomplete's way

    if verb is None:
        add("verb", nargs="?", metavar="VERB", help="one of: " + ", ".join(VERBS))
    if verb in (None, *TRIAL_VERBS):
        add("trials", nargs="*", metavar="TRIAL",
            help="for diff two trials, for show one: ID-rREPLICATE, or the end of it, as in the report")  # fmt: skip
    for flag, (verbs, settings) in FLAGS.items():
        if verb is None or verb in verbs:
            add(*["-h"] * (flag == "--help"), flag, **settings)
    return parser
