"""Verbs and flags, exit codes, one-line errors. Imports what a verb needs only when it is called: help is instant."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.config.errors import (
    BAD_INPUT,
    DONE,
    FULL_DISK,
    INTERRUPTED,
    NO_SPACE,
    SOME_FAILED,
    Parser,
    UserError,
    allowed_names,
)
from study.config.schema import LAUNCHERS, StudyConfig
from study.config.yaml_input import read_yaml
from study.plan.loading import DEFAULT_SCALE, available, load_study

if TYPE_CHECKING:
    from rich.console import Console

    from study.analysis.report.report import Report
    from study.plan.trials import PlannedTrial
    from study.record.layout import StudyFolder


VERBS = {
    "run": "plan, train what has no result yet, and report (what no verb means)",
    "plan": "the table of trials, with batch numbers, learning rates, sizes and a forecast of the time",
    "status": "how much is done in every cell, what runs, what failed and why",
    "report": "write the report from the records there are",
    "dashboard": "make or update the study's pages on W&B",
    "diff": "what differs between two trials: config, versions, result",
    "bench": "measure this machine; without a name, lists what can be measured",
}

MODES = {"watch": "status", "serve": "report", "compare": "report"}  # flags of one verb


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0 done, 1 some trials failed, 2 bad input, 130 interrupted."""
    try:
        if arguments[:1] == ["bench"]:  # with flags of its own
            from study.bench.__main__ import run

            return run(arguments[1:])
        options = _parse(arguments)
        if options.study is None:
            if options.verb is None:
                return _list()
            raise UserError(f"{options.verb}: --study is needed; {allowed_names('', available('studies'))}")
        verbs = {
            "run": _run, "plan": _plan, "status": _status, "report": _report, "dashboard": _dashboard, "diff": _diff,
        }  # fmt: skip
        return verbs[options.verb or "run"](options)
    except UserError as error:
        from study.record.environment import hide_passwords

        print(f"error: {hide_passwords(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = error.filename or "the disk of the results"
        print(f"error: {NO_SPACE} {where}; free some, and the same command goes on", file=sys.stderr)
        return SOME_FAILED
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The command line: a small, frozen set of flags. What else can be turned lives in YAML and --set."""
    parser = Parser(
        prog="run_study.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains every cell of a study and reports what its normalization layers chose.",
        epilog="verbs:\n" + "\n".join(f"  {verb:11}{text}" for verb, text in VERBS.items())
        + "\n\nWithout arguments: lists the studies and scales. The same command again goes on where it stopped.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("verb", nargs="?", metavar="VERB", help="one of: " + ", ".join(VERBS))
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="two trials, for diff: ID-rREPLICATE")
    parser.add_argument("--study", metavar="NAME", help="a study of configs/studies, or the path of a YAML file")
    parser.add_argument("--scale", metavar="NAME", default=DEFAULT_SCALE, help="how big (default: %(default)s)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="trials at once (default: one a core, or run.trials_per_device a GPU)"
    )
    parser.add_argument("--launcher", metavar="NAME", help="where trials run: local, slurm or ray (default: local)")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage (default: SQLite in the study's folder)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--compare", metavar="DIR", nargs="+", type=Path, help="report: set other studies beside it")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    parser.add_argument(
        "--watch", action="store_true", help="status: stay, and show what changes, until it is finished"
    )
    parser.add_argument(
        "--serve", action="store_true", help="report: on a page of this machine that keeps up; Ctrl-C ends"
    )
    parser.add_argument(
        "--detach", action="store_true", help="return at once; the same command, status or report collect"
    )
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    options, unknown = parser.parse_known_intermixed_args(arguments)
    options.arguments = list(arguments)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"{unknown[0]}: unknown flag; {allowed_names(unknown[0], flags)}")
    if options.verb is not None and options.verb not in VERBS:
        raise UserError(f"{options.verb}: unknown verb; {allowed_names(options.verb, VERBS)}")
    if options.trials and options.verb != "diff":
        raise UserError(f"{options.trials[0]}: {options.verb} takes no trials")
    for flag, verb in MODES.items():
        if getattr(options, flag) and options.verb != verb:
            raise UserError(f"--{flag}: belongs to {verb}, not to {options.verb or 'run'}; nearest: {verb} --{flag}")
    if options.launcher not in (None, *LAUNCHERS):
        raise UserError(
            f"--launcher {options.launcher}: unknown launcher; {allowed_names(options.launcher, LAUNCHERS)}"
        )
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    return options


def _study(options: argparse.Namespace) -> tuple[StudyConfig, StudyFolder]:
    from study.record.layout import StudyFolder

    launcher = [f"launch.launcher={options.launcher}"] if options.launcher else []
    study = load_study(options.study, options.scale, [*options.set, *launcher])
    return study, StudyFolder(options.out / study.name)


def _console() -> Console:
    from rich.console import Console

    # A pipe or a log file has no width; tables must not be cut to 80 columns there.
    # No markup: the pool in `sn[in,ln]` is none.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


# ------------------------------------------------------------------------------------------------- the verbs


def _list() -> int:
    for kind in ("studies", "scales"):
        print(f"{kind}:")
        for name, path in available(kind).items():
            print(f"  {name:16}{read_yaml(path).get('title', '')}")
    print(f"\npython run_study.py --study NAME [--scale {DEFAULT_SCALE}]; --help says more")
    return DONE


def _run(options: argparse.Namespace) -> int:
    from study.cli.live_view import TrialProblem, format_problems, group_problems
    from study.cli.progress import SweepProgress
    from study.record.environment import command_line, describe_environment
    from study.sweep.driver import Driver
    from study.sweep.executors.build import build_executor
    from study.sweep.study_file import check_folder

    study, folder = _study(options)
    check_folder(study, folder)
    _check_runnable(study)
    console = _console()
    executor = build_executor(study, folder, options.workers)
    if options.detach and not executor.outlives_driver:
        executor.close()
        return _run_in_background(folder, options)
    install_signal_handlers()
    outcome = Driver(
        study=study,
        folder=folder,
        executor=executor,
        environment=describe_environment(command_line(list(sys.argv[1:]))),
        console=console,
        command_for=lambda trial: _reproduce(options, study, trial),
        storage=options.storage,
        retry_failed=options.retry_failed,
        detach=options.detach,
        listener=SweepProgress(console, folder),
    ).run()
    if outcome.left:
        console.print(f"{outcome.left} trials are queued; the same command collects, status shows how far they are")
        return DONE
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", style="red", soft_wrap=True)
    report = _print_report(console, folder)
    from study.dashboard.summary import write_summary_once

    write_summary_once(report, study.tracking)
    if outcome.best:
        console.print(outcome.best, soft_wrap=True)
    for group in group_problems(
        TrialProblem(key=key, state="failed", reason=why) for key, why in outcome.failed.items()
    ):
        console.print(format_problems(group), style="red", soft_wrap=True)
    if outcome.failed:
        console.print("--retry-failed runs them again", style="red")
    return SOME_FAILED if outcome.failed or outcome.stopped else DONE


def _plan(options: argparse.Namespace) -> int:
    from study.plan.trials import plan_trials
    from study.sweep.executors.resources import count_cores, count_places
    from study.sweep.study_file import check_folder

    study, folder = _study(options)
    console = _console()
    if study.search is not None:
        console.print(_search_plan(study))
        return DONE
    trials = plan_trials(study)
    check_folder(study, folder)
    from study.cli.tables import print_plan

    workers = options.workers or count_places(study.run, ["cpu"], count_cores())
    print_plan(console, study, trials, folder, workers)
    return DONE


def _search_plan(study: StudyConfig) -> str:
    assert study.search is not None
    space = "\n".join(f"  {factor}: {levels}" for factor, levels in study.factors.items())
    return (
        f"{study.title}\n{study.search.n_trials} cells x {study.replicates} replicates suggested by "
        f"{study.search.sampler}, to {study.search.direction} {study.search.objective}, over\n{space}"
    )


def _status(options: argparse.Namespace) -> int:
    from study.cli.tables import print_status
    from study.sweep.study_file import check_folder

    study, folder = _study(options)
    check_folder(study, folder)
    if options.watch:
        return _watch(study, folder)
    print_status(_console(), study, folder)
    return DONE


def _watch(study: StudyConfig, folder: StudyFolder) -> int:
    from study.cli.watch import watch

    install_signal_handlers()  # the terminal is left as it was
    try:
        return DONE if watch(_console(), study, folder) else SOME_FAILED
    except KeyboardInterrupt:  # the watching has stopped, and not the study
        return INTERRUPTED


def _report(options: argparse.Namespace) -> int:
    from study.analysis.records import read_study
    from study.record.layout import StudyFolder

    folder, others = _run_folder(options), [StudyFolder(path) for path in options.compare or ()]
    for other in others:  # a bad one is said before anything is written
        read_study(other)
    console = _console()
    images = _print_report(console, folder).export()
    console.print(images if isinstance(images, str) else f"figures: {len(images)} in {folder.report / 'figures'}")
    if others:
        from study.analysis.report.comparison import write_comparison

        console.print(f"side by side: {write_comparison(folder, others)}", soft_wrap=True)
    if options.serve:
        from study.cli.report_server import serve_report

        install_signal_handlers()
        serve_report(folder, lambda line: console.print(line, soft_wrap=True))
    return DONE


def _dashboard(options: argparse.Namespace) -> int:
    folder = _run_folder(options)
    from study.dashboard.publish import publish

    for kind, url in publish(folder).items():
        print(f"{kind}: {url}")
    if unsynced := folder.unsynced_runs():
        print(f"{unsynced} of its runs are here alone; to bring them there: wandb sync {folder.wandb}/offline-run-*")
    return DONE


def _diff(options: argparse.Namespace) -> int:
    from study.cli.tables import print_difference

    _, folder = _study(options)
    if len(options.trials) != 2:
        raise UserError(f"diff: two trials are needed, got {len(options.trials)}; they look like ID-r0")
    known = {trial.key: trial for trial in folder.trials()}
    for key in options.trials:
        if key not in known:
            raise UserError(f"diff {key}: no such trial in {folder.path}; {_nearest(key, list(known))}")
    print_difference(_console(), known[options.trials[0]], known[options.trials[1]])
    return DONE


# --------------------------------------------------------------------------------------------------- helpers


ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def install_signal_handlers() -> None:
    """SIGTERM and SIGHUP end the program as Ctrl-C does."""
    for number in ENDINGS:
        signal.signal(number, _on_terminate)


def _on_terminate(*_: object) -> None:
    """As Ctrl-C: trials leave with a checkpoint. Once; these signals often come twice, and must not cut that short."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_in_background(folder: StudyFolder, options: argparse.Namespace) -> int:
    """Has a driver that no terminal can take along do the work; returns when it is at it, or has ended."""
    from study.record.io import read_json
    from study.sweep.driver import DETACHED

    if folder.is_locked():
        raise UserError(f"{folder.path}: a driver is running this study already; status shows how far it is")
    folder.path.mkdir(parents=True, exist_ok=True)
    arguments = [argument for argument in options.arguments if argument != "--detach"]
    with open(folder.driver_log, "a") as log:
        driver = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "study", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={**os.environ, DETACHED: "1"},
        )  # fmt: skip
    while driver.poll() is None and (read_json(folder.driver) or {}).get("pid") != driver.pid:
        time.sleep(0.1)
    code = driver.poll()
    if code:
        print(f"process {driver.pid} has ended with exit code {code}; see {folder.driver_log}", file=sys.stderr)
        return code
    print(f"process {driver.pid} runs the study; it prints to {folder.driver_log}. status shows how far it is")
    return DONE


def _check_runnable(study: StudyConfig) -> None:
    """Bad cells and missing data are the user's to know before anything is written."""
    from study.data.files import data_folder
    from study.plan.trials import plan_corners, plan_trials

    trials = plan_trials(study) if study.search is None else plan_corners(study)
    datasets = {trial.config.dataset for trial in trials}
    data_folder(study.run.data_root)
    if study.start.checkpoint is not None:
        from study.training.warm_start import check_checkpoint

        check_checkpoint(Path(study.start.checkpoint), [trial.config for trial in trials])
    if datasets - {"digits"}:  # those ship with a library, and this imports torch
        from study.data.load import check_data

        for dataset in sorted(datasets - {"digits"}):
            wanted = [trial.config.train_samples for trial in trials if trial.config.dataset == dataset]
            check_data(dataset, study.run.data_root, subset=None not in wanted)


def _reproduce(options: argparse.Namespace, study: StudyConfig, trial: PlannedTrial) -> str:
    """The command that trains one trial again, with the replicates before it."""
    from study.record.environment import command_line

    cells = [dict(trial.levels)]
    while study.cell(cells[0]).start_rule != "scratch" and (source := study.source_levels(cells[0])):
        cells.insert(0, source)  # what it starts from has to be trained first
    levels = [
        f"factors.{factor}={json.dumps(list(dict.fromkeys(cell[factor] for cell in cells)))}" for factor in trial.levels
    ]
    settings = [*options.set, *levels, f"replicates={trial.replicate + 1}"]
    if study.search is not None:
        settings.append("search=null")
    flags = [argument for setting in settings for argument in ("--set", setting)]
    return command_line(["--study", options.study, "--scale", options.scale, *flags, "--out", "reproduced"])


def _run_folder(options: argparse.Namespace) -> StudyFolder:
    """The folder of a study that has been run. Raises `UserError` where none has."""
    from study.record.layout import StudyFolder

    folder = StudyFolder(options.out / options.study)
    _check_known(options.study, options.out)
    if options.study in available("studies") or not folder.config.exists():  # else it was imported, or came from afar
        study, folder = _study(options)
        if not folder.config.exists():
            raise UserError(f"{folder.path}: no study has been run here; run it first: --study {study.name}")
    return folder


def _check_known(study: str, out: Path) -> None:
    """A report is of a study that is configured here, or of one that lies in the folder of results."""
    known = {*available("studies"), *(path.parent.name for path in out.glob("*/study.yaml"))}
    if study not in known and not study.endswith((".yaml", ".yml")):
        raise UserError(f"--study {study}: unknown study; {allowed_names(study, sorted(known))}")


def _print_report(console: Console, folder: StudyFolder) -> Report:
    """Writes the report and prints its answers."""
    from study.analysis.questions.interim_answers import format_answer
    from study.analysis.report.report import Report

    report = Report(folder)
    path = report.write()
    for name, answer in report.answers.items():
        console.print("\n" + "\n".join(format_answer(name, answer)), soft_wrap=True)
    console.print(f"\nreport: {path}")
    return report


def _nearest(key: str, known: list[str]) -> str:
    """Like `allowed_names`, for lists too long to print."""
    every = allowed_names(key, known)
    return every if len(known) <= 12 else every.partition("; ")[2] or "run status to see them"
