"""Verbs and flags, exit codes, one-line errors. Imports what a verb needs only when it is called: help is instant."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.config import DEFAULT_SCALE, StudyConfig, available, load_study
from study.reading import Parser, UserError, allowed_names, read_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from study.plan import PlannedTrial
    from study.record.files import StudyFolder

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "run": "plan, train what has no result yet, and report (what no verb means)",
    "plan": "the table of trials, with batch numbers, learning rates, sizes and a forecast of the time",
    "status": "how much is done in every cell, what runs, what failed and why",
    "report": "write the report from the records there are",
    "diff": "what differs between two trials: config, versions, result",
    "bench": "measure this machine; without a name, lists what can be measured",
}


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
        return {"run": _run, "plan": _plan, "status": _status, "report": _report, "diff": _diff}[options.verb or "run"](
            options
        )
    except UserError as error:
        from study.record.environment import hide_passwords

        print(f"error: {hide_passwords(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The command line: a small, frozen set of flags. What else can be turned lives in YAML and --set."""
    parser = Parser(
        prog="run_study.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains every cell of a study and reports what its normalization layers chose.",
        epilog="verbs:\n" + "\n".join(f"  {verb:8}{text}" for verb, text in VERBS.items())
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
    parser.add_argument("--launcher", metavar="NAME", default="local", help="where trials run: local")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage (default: SQLite in the study's folder)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"{unknown[0]}: unknown flag; {allowed_names(unknown[0], flags)}")
    if options.verb is not None and options.verb not in VERBS:
        raise UserError(f"{options.verb}: unknown verb; {allowed_names(options.verb, VERBS)}")
    if options.trials and options.verb != "diff":
        raise UserError(f"{options.trials[0]}: {options.verb} takes no trials")
    if options.launcher != "local":
        raise UserError(
            f"--launcher {options.launcher}: unknown launcher; {allowed_names(options.launcher, ['local'])}"
        )
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    return options


def _study(options: argparse.Namespace) -> tuple[StudyConfig, StudyFolder]:
    from study.record.files import StudyFolder

    study = load_study(options.study, options.scale, options.set)
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
    from study.record.environment import command_line, describe_environment
    from study.sweep.driver import Driver
    from study.sweep.folder import check_folder
    from study.sweep.local import LocalExecutor

    study, folder = _study(options)
    check_folder(study, folder)
    _check_runnable(study)
    console = _console()

    devices = _devices(study.run.device)
    _check_precision(study, devices)
    workers = options.workers or _capacity(study, devices)
    executor = LocalExecutor(workers, devices, min(study.run.threads, max(1, _cores() // workers)))
    outcome = Driver(
        study=study,
        folder=folder,
        executor=executor,
        environment=describe_environment(command_line(list(sys.argv[1:]))),
        console=console,
        command_for=lambda trial: _reproduce(options, study, trial),
        storage=options.storage,
        retry_failed=options.retry_failed,
    ).run()
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", style="red", soft_wrap=True)
    _print_report(console, folder)
    if outcome.best:
        console.print(outcome.best, soft_wrap=True)
    for key, reason in outcome.failed.items():
        console.print(f"failed: {key}: {reason}", style="red", soft_wrap=True)
    if outcome.failed:
        console.print("--retry-failed runs them again", style="red")
    return SOME_FAILED if outcome.failed or outcome.stopped else DONE


def _plan(options: argparse.Namespace) -> int:
    from study.plan import plan_trials
    from study.sweep.folder import check_folder

    study, folder = _study(options)
    console = _console()
    if study.search is not None:
        console.print(_search_plan(study))
        return DONE
    trials = plan_trials(study)
    check_folder(study, folder)
    from study.tables import print_plan

    print_plan(console, study, trials, workers=options.workers or _capacity(study, ["cpu"]))
    return DONE


def _search_plan(study: StudyConfig) -> str:
    assert study.search is not None
    space = "\n".join(f"  {factor}: {levels}" for factor, levels in study.factors.items())
    return (
        f"{study.title}\n{study.search.n_trials} cells x {study.replicates} replicates suggested by "
        f"{study.search.sampler}, to {study.search.direction} {study.search.objective}, over\n{space}"
    )


def _status(options: argparse.Namespace) -> int:
    from study.sweep.folder import check_folder
    from study.tables import print_status

    study, folder = _study(options)
    check_folder(study, folder)
    print_status(_console(), study, folder)
    return DONE


def _report(options: argparse.Namespace) -> int:
    study, folder = _study(options)
    if not folder.config.exists():
        raise UserError(f"{folder.path}: no study has been run here; run it first: --study {study.name}")
    _print_report(_console(), folder)
    return DONE


def _diff(options: argparse.Namespace) -> int:
    from study.tables import print_difference

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


def _check_runnable(study: StudyConfig) -> None:
    """Bad cells and missing data are the user's to know before anything is written."""
    from study.data.files import data_folder
    from study.plan import plan_corners, plan_trials

    trials = plan_trials(study) if study.search is None else plan_corners(study)
    datasets = {trial.config.dataset for trial in trials}
    data_folder(study.run.data_root)
    if datasets - {"digits"}:  # those ship with a library; opening others downloads them once, before the workers
        from study.data.load import load_images

        for dataset in sorted(datasets - {"digits"}):
            load_images(dataset, study.run.data_root)


def _check_precision(study: StudyConfig, devices: list[str]) -> None:
    """On a CPU, float16 would silently be bfloat16."""
    precisions = [study.base.precision, *(study.factors.get("precision") or [])]
    if devices == ["cpu"] and "float16" in precisions:
        raise UserError("base.precision: 'float16': needs a CUDA device; allowed here: float32, bfloat16")


def _reproduce(options: argparse.Namespace, study: StudyConfig, trial: PlannedTrial) -> str:
    """The command that trains one trial again, with the replicates before it."""
    from study.record.environment import command_line

    levels = [f"factors.{factor}={json.dumps([level])}" for factor, level in trial.levels.items()]
    settings = [*options.set, *levels, f"replicates={trial.replicate + 1}"]
    if study.search is not None:
        settings.append("search=null")
    flags = [argument for setting in settings for argument in ("--set", setting)]
    return command_line(["--study", options.study, "--scale", options.scale, *flags, "--out", "reproduced"])


def _print_report(console: Console, folder: StudyFolder) -> None:
    from study.analysis.report import write_report
    from study.record.files import read_json

    path = write_report(folder)
    answers = read_json(path.parent / "answers.json") or {}
    for name, answer in answers.get("questions", {}).items():
        console.print(f"\n{name}: {answer['verdict']}\n  {answer['answer']}", soft_wrap=True)
    console.print(f"\nreport: {path}")


def _devices(wanted: str) -> list[str]:
    if wanted == "cpu" or (wanted == "auto" and shutil.which("nvidia-smi") is None):
        return ["cpu"]
    import torch

    count = torch.cuda.device_count()
    if not count and wanted == "cuda":
        raise UserError("run.device=cuda: no CUDA device is available; allowed: auto, cpu")
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def _capacity(study: StudyConfig, devices: list[str]) -> int:
    """Trials at once: one for every few cores, or so many a GPU."""
    if devices == ["cpu"]:
        return max(1, _cores() // study.run.threads)
    return len(devices) * study.run.trials_per_device


def _cores() -> int:
    """Cores that this process may use, which a container or a job may have narrowed."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nearest(key: str, known: list[str]) -> str:
    """Like `allowed_names`, for lists too long to print."""
    every = allowed_names(key, known)
    return every if len(known) <= 12 else every.partition("; ")[2] or "run status to see them"
