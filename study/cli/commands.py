"""What each verb of the command line does: one function per verb, which returns an exit code."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from study.cli.console import build_console
from study.cli.recorded import (
    apply_settings,
    describe_edits,
    find_compared_folders,
    find_run_folder,
    load_as_last_run,
    load_shown,
    load_with_flags,
)  # fmt: skip
from study.config.datasets import DATASETS
from study.config.errors import DONE, INTERRUPTED, SOME_FAILED, UserError, allowed_names, escape_controls
from study.config.schema import AnalysisConfig, StudyConfig, TrackingConfig, TrialConfig
from study.config.secrets import hide_secret_settings, is_secret_setting
from study.config.seeds import MAX_REPLICATES, find_seed_role
from study.config.wording import format_plural
from study.config.yaml_input import read_yaml
from study.plan.analysis_plan import format_changes
from study.plan.loading import DEFAULT_SCALE, list_configs, read_study_file
from study.record.environment import describe_environment, format_command, program_name
from study.record.io import read_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.study_file import check_folder

if TYPE_CHECKING:
    from study.analysis.report.report import Report
    from study.plan.trials import PlannedTrial
    from study.record.wandb_server import Connection


def list_studies() -> int:
    """Lists the studies and scales that exist."""
    for kind in ("studies", "scales"):
        print(f"{kind}:")
        for name, path in list_configs(kind).items():
            print(f"  {name:16}{escape_controls(str(read_yaml(path).get('title', '')).strip())}")
    print(f"\nTo run one: {program_name()} --study NAME [--scale {DEFAULT_SCALE}]. --help lists all verbs and flags.")
    return DONE


def run_study(options: argparse.Namespace) -> int:
    """Trains the trials that have no result yet, and writes the report."""
    from study.cli.progress import SweepProgress
    from study.sweep.driver import Driver
    from study.sweep.executors import env
    from study.sweep.executors.build import build_executor

    study, folder = load_with_flags(options)
    if study.launch.launcher != "env":
        env.check_started_once()
    elif options.detach:
        raise UserError("--detach: not with --launcher env; whatever starts the processes also waits for them")
    elif env.find_environment().global_rank():
        return env.follow_driver(study, folder)
    check_folder(study, folder, options.space)
    data = _check_runnable(study)
    if data and folder.config.exists():
        from study.analysis.data_fingerprints import check_same_data

        check_same_data(folder, data)
    console = build_console()
    executor = build_executor(study, folder, options.workers)
    if options.detach and not executor.outlives_driver:
        executor.close()
        return _start_detached_driver(folder, options)
    result = Driver(
        study=study,
        folder=folder,
        executor=executor,
        environment=describe_environment(
            format_command(hide_secret_settings(options.arguments), _own_program(options))
        ),
        console=console,
        command_for=lambda trial: _build_reproduce_command(options, study, trial),
        storage=options.storage,
        retry_failed=options.retry_failed,
        detach=options.detach,
        listener=SweepProgress(console, folder),
        data=data,
        space=options.space,
        build_network=options.build_network,
    ).run()
    if result.left:
        left = format_plural(result.left, "trial is", "trials are")
        console.print(f"{left} queued. `status` shows the progress; the same command collects the results.")
        return DONE
    if result.stopped:
        console.print(f"Stopped early: {result.stopped}", style="red", soft_wrap=True)
    report = _write_report(console, folder)
    from study.dashboard.summary import write_summary_once

    write_summary_once(report)
    if result.wandb:
        if result.wandb.project_url:
            console.print(f"W&B: {result.wandb.project_url}", soft_wrap=True)
        _print_unsynced(folder, options, result.wandb)
    if result.best:
        console.print(result.best, soft_wrap=True)
    _print_problems(console, "failed", result.failed)
    if result.failed:
        console.print("To run failed trials again: --retry-failed", style="red")
    if result.cancelled:
        were = format_plural(len(result.cancelled), "trial was", "trials were")
        console.print(f"{were} cancelled; the same command submits them again.", style="yellow")
    return SOME_FAILED if result.failed or result.cancelled or result.stopped else DONE


def show_plan(options: argparse.Namespace) -> int:
    """Prints every cell of a grid with its batch sizes, network size and estimated time; of a search, its space."""
    from study.cli.tables import print_analysis_plan, print_plan, print_search_space
    from study.plan.trials import plan_corners, plan_trials
    from study.sweep.executors.resources import count_cores, count_places

    study, folder = load_as_last_run(options)
    check_folder(study, folder)
    console = build_console()
    if study.search is not None:
        plan_corners(study)  # raises for a cell that cannot be trained
        print_search_space(console, study)
        print_analysis_plan(console, study, folder)
        return DONE
    trials = plan_trials(study)
    print_plan(console, study, trials, folder, options.workers or count_places(study.run, ["cpu"], count_cores()))
    print_analysis_plan(console, study, folder)
    return DONE


def show_status(options: argparse.Namespace) -> int:
    """Prints the states of all trials; with --watch, keeps showing them until the study has ended."""
    from study.cli.tables import print_status
    from study.cli.watch import watch

    study, folder, note = load_shown(options)
    console = build_console()
    if note:
        console.print(note, soft_wrap=True)
    if not options.watch:
        print_status(console, study, folder)
        return DONE
    try:
        return DONE if watch(console, study, folder) else SOME_FAILED
    except KeyboardInterrupt:  # ends only the watching: there is nothing to resume
        return INTERRUPTED


def write_report(options: argparse.Namespace) -> int:
    """Writes the report, figures as files, and with --compare a comparison page.

    With --serve, serves it instead of writing figures as files, which takes a minute or more.
    """
    folder = find_run_folder(options)
    others = find_compared_folders(options, folder)
    recorded = read_study_file(folder.config)
    analysis = apply_settings(options, recorded, folder, section="analysis").analysis
    if analysis != recorded.study.analysis and (others or options.serve):
        raise UserError(
            "--set: a report with other settings of `analysis` needs a command without --serve or --compare"
        )
    console = build_console()
    if edits := describe_edits(options, recorded):
        console.print(
            f"{options.study} has changed since the last run: {edits}. The report is that of {folder.config}; "
            "the verb `run` records the changes.", soft_wrap=True,
        )  # fmt: skip
    if options.serve:
        from study.cli.study_observer import StudyObserver

        print("The report is written first; its address follows.")
        observer = StudyObserver(folder)
        observer.read_records()  # before the report: what changes while it is written is in the next one
    report = _write_report(console, folder, analysis)
    if not (options.no_images or options.serve):
        images = report.export()
        console.print(images if isinstance(images, str) else f"figures: {len(images)} in {folder.report / 'figures'}")
    if others:
        from study.analysis.report.comparison import write_comparison

        console.print(f"side by side: {write_comparison(folder, others)}", soft_wrap=True)
    if options.serve:
        from study.cli.report_server import serve_report

        serve_report(observer, lambda line: console.print(line, soft_wrap=True))
    return DONE


def publish_dashboard(options: argparse.Namespace) -> int:
    """Creates or updates the study's pages on W&B."""
    folder = find_run_folder(options)
    study = apply_settings(options, read_study_file(folder.config), folder, section="tracking")
    _check_project(study.tracking)
    from study.dashboard.publish import publish

    for kind, url in publish(folder, study).items():
        print(f"{kind}: {url}")
    _print_unsynced(folder, options)
    return DONE


def sync_runs(options: argparse.Namespace) -> int:
    """Uploads to W&B what the records hold and the server lacks."""
    folder = find_run_folder(options)
    study = apply_settings(options, read_study_file(folder.config), folder, section="tracking")
    _check_project(study.tracking)
    from study.dashboard.sync import sync

    result = sync(folder, study, lambda line: print(f"uploading {line}", flush=True))
    training = f", {len(result.training)} skipped, because they are still training" if result.training else ""
    uploaded = format_plural(len(result.uploaded), "trial")
    print(f"{uploaded} uploaded, {len(result.complete)} complete before{training}")
    for key, reason in result.failed.items():
        print(f"{key}: not uploaded: {reason}", file=sys.stderr)
    if result.url:
        print(f"W&B: {result.url}")
    return SOME_FAILED if result.failed else DONE


def _print_unsynced(folder: StudyFolder, options: argparse.Namespace, wandb: Connection | None = None) -> None:
    """Says how many runs are not, or not completely, on a server, why, where they are, and what uploads them.

    wandb: how they were recorded; None where the server has answered.
    """
    from study.record.wandb_links import count_unsynced_runs

    if unsynced := count_unsynced_runs(folder):
        out = [] if options.out == Path("runs") else ["--out", str(options.out)]
        command = format_command(["sync", "--study", options.study, *out])
        why = f" ({wandb.problem})" if wandb and wandb.problem else ""
        login = " (after `wandb login`)" if wandb and wandb.mode == "offline" and not why else ""
        print(
            f"W&B: {unsynced} of the runs in {folder.wandb} are not completely on a server{why}. "
            f"To upload them{login}: {command}"
        )


def show_difference(options: argparse.Namespace) -> int:
    """Prints what differs between two trials."""
    from study.cli.tables import print_difference

    recorded = read_study_file(find_run_folder(options).config)
    print_difference(build_console(), recorded, *_find_trials(options, 2))
    return DONE


def show_trial(options: argparse.Namespace) -> int:
    """Prints the config, learning curves, choices and log of one trial."""
    from study.cli.trial_view import print_trial

    folder = find_run_folder(options)
    [trial] = _find_trials(options, 1)
    print_trial(build_console(), trial, read_study_file(folder.config))
    return DONE


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": run_study, "plan": show_plan, "status": show_status, "report": write_report,
    "sync": sync_runs, "dashboard": publish_dashboard, "diff": show_difference, "show": show_trial,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- study and folder


def _find_trials(options: argparse.Namespace, count: int) -> list[TrialFolder]:
    """The trials that the command names, by their key or the end of it, as the report shows it."""
    folder = find_run_folder(options)
    apply_settings(options, read_study_file(folder.config), folder)
    if len(options.trials) != count:
        wanted = "one trial, as ID-r0" if count == 1 else "two trials, as ID-r0 ID-r1"
        raise UserError(f"{options.verb}: expected {wanted}, got {len(options.trials)}")
    known = {trial.key: trial for trial in folder.trials()}
    return [known[_complete_key(options.verb, name, known, folder)] for name in options.trials]


def _complete_key(verb: str, name: str, known: Collection[str], folder: StudyFolder) -> str:
    if name in known:
        return name
    found = [key for key in known if key.endswith(f"-{name}")]
    if len(found) == 1:
        return found[0]
    known = [key for key in known if name in key] or known
    problem = f"{len(found)} trials end like this" if found else "no such trial"
    raise UserError(f"{verb} {name}: {problem} in {folder.path}; {allowed_names(name, found or known)}")


# ------------------------------------------------------------------------------------------------------- run


def _check_runnable(study: StudyConfig) -> dict[str, str]:
    """The fingerprints of the data sets whose files were read, by name.

    Raises `UserError` for an impossible cell or missing data, before anything is written.
    """
    from study.data.data_root import resolve_data_root
    from study.plan.trials import plan_corners, plan_trials

    trials = plan_trials(study) if study.search is None else plan_corners(study)
    # Digits come with a library; the check of the others imports torch.
    needs_data = {
        _name_files(trial.config): trial.config for trial in trials if trial.config.dataset != "digits"
    }  # fmt: skip
    resolve_data_root(study.run.data_root)
    _check_project(study.tracking)
    if study.start.checkpoint is not None:
        from study.training.warm_start import check_checkpoint

        check_checkpoint(Path(study.start.checkpoint), [trial.config for trial in trials])
    data: dict[str, str] = {}
    for config in needs_data.values():
        from study.data.load import check_data

        data |= check_data(config, study.run.data_root, own_data=study.run.own_data)
    return data


def _name_files(config: TrialConfig) -> tuple[Any, ...]:
    """What the check of a trial's data depends on; of data sets in memory, on nothing but their name."""
    if not DATASETS[config.dataset].streamed:
        return (config.dataset,)
    return config.dataset, config.train_samples, config.validation_fraction, config.task_head


def _check_project(tracking: TrackingConfig) -> None:
    """Raises `UserError` for a project name that W&B refuses. Not in the schema, which also reads old records."""
    project, refused = tracking.project, r"[/\\#?%:]|^\s*$|.{129}"
    if tracking.mode != "disabled" and re.search(refused, project, re.DOTALL):
        raise UserError(f"tracking.project: {project!r}: W&B allows 1 to 128 characters, without / \\ # ? % and :")


def _start_detached_driver(folder: StudyFolder, options: argparse.Namespace) -> int:
    """Starts a driver that outlives the terminal; returns an exit code once it has started to work, or has ended."""
    from study.cli.background import environment_with_package
    from study.sweep.driver import DETACHED

    if folder.is_locked():
        raise UserError(f"{folder.path}: a driver is running this study already; `status` shows its progress")
    folder.path.mkdir(parents=True, exist_ok=True)
    program = [sys.argv[0]] if _own_program(options) else ["-m", "study"]
    arguments = [flag for flag in options.arguments if flag != "--detach"]
    with open(folder.driver_log, "a") as log:
        driver = subprocess.Popen(  # noqa: S603
            [sys.executable, *program, *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**environment_with_package(), DETACHED: "1"},
        )  # fmt: skip
    while driver.poll() is None and (read_json(folder.driver) or {}).get("pid") != driver.pid:
        time.sleep(0.1)
    if code := driver.poll():
        print(f"process {driver.pid} ended with exit code {code}; see {folder.driver_log}", file=sys.stderr)
        return code
    print(f"Process {driver.pid} runs the study and prints to {folder.driver_log}. `status` shows its progress.")
    return DONE


def _build_reproduce_command(options: argparse.Namespace, study: StudyConfig, trial: PlannedTrial) -> str:
    """The command that trains one trial again, with the trials it starts from and its lower replicates."""
    from study.plan.warm_start import list_required_cells

    cells = list_required_cells(study, trial.levels)
    levels = {factor: list(dict.fromkeys(cell[factor] for cell in cells)) for factor in trial.levels}
    role = find_seed_role(trial.replicate)
    replaced = {"replicates", *levels, *(f"factors.{factor}" for factor in levels)}
    given = [
        setting
        for setting in options.set
        if not is_secret_setting(setting) and setting.partition("=")[0] not in replaced
    ]
    settings = [
        *given,
        *(f"factors.{factor}={json.dumps(values)}" for factor, values in levels.items()),
        f"replicates={trial.replicate % MAX_REPLICATES + 1}",
    ]
    if study.seeds.apart:
        settings.append(f"seeds.apart={json.dumps([role] if role else [])}")
    if study.search is not None:
        settings.append("search=null")
    flags = [argument for setting in settings for argument in ("--set", setting)]
    arguments = ["--study", options.study, "--scale", options.scale or DEFAULT_SCALE, *flags, "--out", "reproduced"]
    return format_command(arguments, _own_program(options))


def _own_program(options: argparse.Namespace) -> str:
    """The user's own program, which alone knows the network of another choice; empty if this program is enough."""
    return "" if options.build_network is None else f"python {shlex.quote(sys.argv[0])}"


def _write_report(console: Console, folder: StudyFolder, analysis: AnalysisConfig | None = None) -> Report:
    """Writes the report and prints its answers."""
    from study.analysis.report.interim_answers import format_answer
    from study.analysis.report.report import Report

    report = Report(folder, analysis)
    path = report.write()
    for name, answer in report.answers.items():
        console.print("\n" + "\n".join(format_answer(name, answer)), soft_wrap=True)
    damaged = report.records.trials.query("state == 'damaged'").set_index("key")["reason"]
    if not damaged.empty:
        console.print()
        _print_problems(console, "damaged", damaged.to_dict())
    if unrecorded := report.records.plan_changes.unrecorded:
        console.print(f"\nNot in the plan on record: {format_changes(unrecorded)}", soft_wrap=True)
    console.print(f"\nreport: {path}")
    return report


def _print_problems(console: Console, state: str, reasons: Mapping[str, str]) -> None:
    """Prints one line per cause. reasons: by the trials' keys."""
    from study.cli.live_view import format_problems, group_problems
    from study.cli.study_observer import TrialStatus

    trials = [TrialStatus(key=key, state=state, reason=reason) for key, reason in reasons.items()]
    for group in group_problems(trials):
        console.print(format_problems(group), style="red", soft_wrap=True)
