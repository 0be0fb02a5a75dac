"""study.yaml: the study that a folder was planned with. Imports no Optuna, so that `plan` and `status` start fast."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import UserError
from study.config.schema import StudyConfig, build_joint_key
from study.plan.analysis_plan import PlanRecord, amend_plan, record_plan, resolve_analysis_plan
from study.plan.loading import StudyFile, read_study_file
from study.record.io import write_yaml
from study.record.layout import StudyFolder
from study.record.wandb_names import create_study_id


def check_folder(study: StudyConfig, folder: StudyFolder, space: ChoiceSpace | None = None) -> None:
    """Raises `UserError` if the folder was planned with another base, other factors, another search or another space.

    Levels and replicates of a grid may change: only new trials run. `space`: what layers choose from, if trials are
    to be trained.
    """
    if not folder.config.exists():
        return
    content = read_study_file(folder.config)
    change, planned_space = find_change(content.study, study), content.space
    if change is None and space is not None and planned_space.to_dict() != space.to_dict():
        change = f"planned for layers that choose their {planned_space.name}, now their {space.name}"
    if change is not None:
        command = _set_out(str(content.provenance.get("command") or ""), folder.path.parent)
        hint = f", or use the settings of its last run: {command}" if command else ""
        raise UserError(f"{folder.config}: {change}; choose another folder with --out{hint}")


def _set_out(command: str, out: Path) -> str:
    """A recorded command with another `--out`: the study may have been copied or moved. Empty if it is no command."""
    try:
        words = iter(shlex.split(command))
    except ValueError:
        return ""
    kept = []
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join([*kept, "--out", str(out)]) if kept else ""


def find_change(planned: StudyConfig, study: StudyConfig) -> str | None:
    """Returns the first difference that makes records of the two studies incomparable; None if there is none."""
    change = next(_find_changes(planned, study), None)
    if change is not None and planned.scale != study.scale:
        change = f"planned at the scale {planned.scale}, now {study.scale} ({change})"
    return change


def _find_changes(planned: StudyConfig, study: StudyConfig) -> Iterator[str]:
    """Yields the differences that make records of the two studies incomparable."""
    if list(planned.factors) != list(study.factors):
        yield f"planned with the factors {', '.join(planned.factors)}, now {', '.join(study.factors)}"
    for name, before in planned.base.model_dump().items():
        now = getattr(study.base, name)
        if now != before and name not in study.factors:
            yield f"planned with {name}={before}, now {name}={now}"
    starts = [each.start.model_dump(exclude={"trial", "checkpoint"}) for each in (planned, study)]  # paths may change
    for name, before in starts[0].items():
        if before != starts[1][name]:
            yield f"planned with start.{name}={before}, now {starts[1][name]}"
    for factor, levels in planned.factors.items():
        for level in levels if isinstance(levels, list) else []:
            before, now = (one.joint.get(factor, {}).get(build_joint_key(level), {}) for one in (planned, study))
            if now != before:
                yield f"planned with {before} for {factor}={level}, now {now}"
    if planned.search is not None or study.search is not None:
        yield from _find_search_changes(planned, study)


def _find_search_changes(planned: StudyConfig, study: StudyConfig) -> Iterator[str]:
    """Yields what has changed of a search, apart from more trials: later suggestions depend on earlier ones."""
    for name in ("factors", "replicates", "search"):
        before, now = getattr(planned, name), getattr(study, name)
        if name == "search" and before is not None and now is not None and now.n_trials >= before.n_trials:
            before = before.model_copy(update={"n_trials": now.n_trials})
        if before != now:
            yield f"a search planned with {name}={before}, now {name}={now}"


def check_locks(folder: StudyFolder) -> None:
    """Raises `UserError` if the file system has no file locks, or locks that do not exclude other processes.

    Another process tries to take the lock, because some network file systems grant locks to a process, not to a file
    handle, and would grant this process its own lock a second time.
    """
    path = folder.path / f".lock-test-{os.getpid()}"
    if not os.access(folder.path, os.W_OK):  # the folder, rather than a file that is only there for this test
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder.path))
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            works = False
        else:
            other = subprocess.run([sys.executable, "-SEc", _TRY_LOCK, path], capture_output=True)  # noqa: S603
            works = other.returncode == _LOCK_REFUSED
    path.unlink()
    if not works:
        raise UserError(
            f"--out {folder.path}: this file system has no file locks, which keep a trial from being trained twice; "
            "choose another folder with --out, or have it mounted with locks (Lustre: -o flock)"
        )


_LOCK_REFUSED = 3  # exit code
_TRY_LOCK = f"""
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit({_LOCK_REFUSED})
"""


def write_study(
    study: StudyConfig, folder: StudyFolder, environment: dict[str, Any], space: ChoiceSpace = NORMALIZATION
) -> str:
    """Writes study.yaml: the resolved study, the plan of its analysis, and the environment of its latest run.

    The plan is that of the first run. If another one follows from `study`, an amendment is added. Returns the id of the
    folder, which its first run creates; empty for a folder of an older version. Raises `UserError` if the file exists
    and is damaged.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    before = read_study_file(folder.config) if folder.config.exists() else None
    created = before.provenance.get("created", now) if before else now
    study_id = before.study_id if before else create_study_id()
    plan = _record_analysis_plan(study, folder, before, now)
    content = {
        "study": study.model_dump(mode="json"), **plan.to_dict(), "choice_space": space.to_dict(),
        "provenance": {**environment, "created": created, **({"id": study_id} if study_id else {})},
    }  # fmt: skip
    write_yaml(folder.config, content)
    return study_id


def _record_analysis_plan(study: StudyConfig, folder: StudyFolder, before: StudyFile | None, now: str) -> PlanRecord:
    """The plan on record with what changes now. The plan of an older version's run is that of its study."""
    results = sum(trial.result.exists() for trial in folder.trials())
    record = before.plan if before else None
    if record is None:
        record = record_plan(resolve_analysis_plan(before.study if before and results else study), now, results)
    return amend_plan(record, resolve_analysis_plan(study), now, results)
