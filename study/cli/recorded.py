"""The folder of a study that was run, and its settings: the verbs that train nothing take them from there."""

from __future__ import annotations

import argparse
import glob
import shlex
from pathlib import Path

from study.cli.arguments import parse_arguments
from study.config.errors import UserError, allowed_names
from study.config.schema import StudyConfig
from study.config.secrets import is_secret_setting
from study.plan.analysis_plan import find_changes, format_changes
from study.plan.loading import (
    StudyFile,
    describe_unknown,
    find_study_name,
    is_study_file,
    list_configs,
    load_study,
    override_study,
    read_study_file,
)  # fmt: skip
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.study_file import find_change


def find_folder(options: argparse.Namespace) -> StudyFolder:
    """The folder of the study, whether it has been run or not."""
    return _check_is_folder(StudyFolder(options.out / find_study_name(options.study, options.set)))


def _check_is_folder(folder: StudyFolder) -> StudyFolder:
    existing = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file, not a folder")
    out = folder.path.parent
    if (out / "study.yaml").is_file():
        raise UserError(f"--out {out}: is the folder of a study; the folder above it: --out {out.parent}")
    return folder


def find_run_folder(options: argparse.Namespace) -> StudyFolder:
    """The folder of a study that has been run, or was imported. Raises `UserError` if there is none."""
    folder = find_folder(options)
    if not folder.config.exists():
        existing = {path.parent.name for path in options.out.glob("*/study.yaml")}
        names = sorted({*list_configs("studies"), *existing})
        if not is_study_file(options.study) and options.study not in names:
            raise UserError(describe_unknown("study", options.study, names))
        here = f"; in {options.out}: {', '.join(sorted(existing))}" if existing else ""
        hint = _find_elsewhere(folder) or f"run it first: --study {options.study}{here}"
        raise UserError(f"{folder.path}: no study has been run here; {hint}")
    return folder


def _find_elsewhere(folder: StudyFolder) -> str:
    """Where a study of the same name lies: in a folder inside the one that `--out` names, or beside it."""
    out, pattern = folder.path.parent, f"*/{glob.escape(folder.path.name)}/study.yaml"
    found = sorted({path.parent.parent for place in (out, out.parent) for path in place.glob(pattern)})
    return f"there is one in {found[0]}: --out {shlex.quote(str(found[0]))}" if found else ""


def find_compared_folders(options: argparse.Namespace, folder: StudyFolder) -> list[StudyFolder]:
    """The folders of `--compare`. Raises `UserError` where one holds no study, with the others beside it."""
    others = [StudyFolder(path) for path in options.compare or ()]
    for number, other in enumerate(others):
        if other.config.exists():
            if any(other.path.samefile(each.path) for each in (folder, *others[:number])):
                raise UserError(f"--compare {other.path}: the same study twice")
            read_study_file(other.config)  # raises if it is damaged, before anything is written
            continue
        name, parent = other.path.name, other.path.parent
        beside = {path.parent for path in parent.glob("*/study.yaml")} - {folder.path}
        if name in list_configs("studies"):
            out = "" if parent == Path("runs") else f" --out {shlex.quote(str(parent))}"
            hint = f"run it first: --study {name}{out}"
        else:
            names = sorted(path.name for path in beside)
            hint = allowed_names(name, names) if names else f"no other study in {parent}"
        raise UserError(f"--compare {other.path}: no study has been run here; {hint}")
    return others


def load_with_flags(options: argparse.Namespace) -> tuple[StudyConfig, StudyFolder]:
    """The study that the command's own flags describe."""
    study = load_study(options.study, options.scale, [*options.set, *_launcher_setting(options)])
    return study, _check_is_folder(StudyFolder(options.out / study.name))


def load_as_last_run(options: argparse.Namespace) -> tuple[StudyConfig, StudyFolder]:
    """The study as its file describes it now, with the flags of its last run, and then the command's own."""
    folder = find_folder(options)
    if not folder.config.exists():
        return load_with_flags(options)
    recorded = read_study_file(folder.config)
    if not is_study_file(options.study):  # it was imported, or its file is gone
        return apply_settings(options, recorded, folder), folder
    last = _parse_command(recorded)
    settings = [*last.set, *_launcher_setting(last), *options.set, *_launcher_setting(options)]
    return load_study(options.study, options.scale or last.scale, settings), folder


def describe_edits(options: argparse.Namespace, recorded: StudyFile) -> str:
    """How the study's file differs from what was last run, in a line; empty if it does not."""
    if not is_study_file(options.study):
        return ""
    last = _parse_command(recorded)
    try:
        study = load_study(options.study, last.scale, [*last.set, *_launcher_setting(last)])
    except UserError as error:
        return str(error)
    changes = find_changes(recorded.study.model_dump(mode="json"), study.model_dump(mode="json"))
    return format_changes({key: change for key, change in changes.items() if key not in ("name", "scale")})


def apply_settings(
    options: argparse.Namespace, recorded: StudyFile, folder: StudyFolder, *, section: str = ""
) -> StudyConfig:
    """The study on record with the settings of `--set`, which may change one section at most.

    Raises `UserError` for other changes, because nothing would follow from them.
    """
    before, scale = recorded.study, options.scale
    if scale is not None and Path(scale).stem != before.scale:
        raise UserError(f"--scale {scale}: {folder.config} is of scale {before.scale}")
    study = override_study(before, [*options.set, *_launcher_setting(options)])
    changes = find_changes(before.model_dump(mode="json"), study.model_dump(mode="json"))
    if not set(changes) <= {section}:
        changes.pop(section, None)
        what = f"changes settings of `{section}` alone" if section else "reads what was run"
        raise UserError(
            f"--set: {format_changes(changes)}: `{options.verb}` {what}, in {folder.config}; "
            "to change it, use the verb `run`"
        )
    return study


def load_shown(options: argparse.Namespace) -> tuple[StudyConfig, StudyFolder, str]:
    """The study to count trials of, its folder, and a note if its file has changed since the last run.

    Records that do not belong to the study as its file is now are counted by the study on record. Raises `UserError`
    if the command's own flags are the reason.
    """
    study, folder = load_as_last_run(options)
    if not folder.config.exists():  # it is about to start, or was never run
        if not options.out.exists() and options.out != Path("runs"):
            raise UserError(f"--out {options.out}: no such folder")
        return study, folder, ""
    recorded = read_study_file(folder.config)
    edits = describe_edits(options, recorded)
    change = find_change(recorded.study, study)
    if change is None:
        note = f"{options.study} has changed since the last run: {edits}" if edits else ""
        return study, folder, note
    if options.set or options.scale:
        raise UserError(f"{folder.config}: {change}; without --scale and --set, `{options.verb}` reads them from here")
    return recorded.study, folder, f"{options.study} has changed since the last run, which this is: {edits}"


def read_checked_state(trial: TrialFolder, recorded: StudyFile, plan: PlannedTrial | None = None) -> tuple[str, str]:
    """State and reason of a trial as a report has them: `damaged` if any of its files does not hold what it should.

    plan: None for what trial.yaml says.
    """
    from study.analysis.trial_files import read_search_plan, read_trial

    plan = plan or read_search_plan(recorded.study, trial)
    if plan is None and not trial.trial.exists():
        return trial.status()
    row = read_trial(trial, plan, recorded.space).row
    return row["state"], row["reason"]


def _parse_command(recorded: StudyFile) -> argparse.Namespace:
    """The flags of the command that last ran a study; none if its record does not say.

    Settings that may hold secrets are recorded as ***, and are left out: they only decide how trials are launched.
    """
    try:
        words = shlex.split(str(recorded.provenance.get("command")))
        options = parse_arguments(words[2 if words[:1] == ["python"] else 1 :])
    except ValueError:
        options = parse_arguments([])
    options.set = [setting for setting in options.set if not is_secret_setting(setting)]
    return options


def _launcher_setting(options: argparse.Namespace) -> list[str]:
    return [f"launch.launcher={options.launcher}"] if options.launcher else []
