"""A study's folder and the study it was planned with. Imports no Optuna: `plan` and `status` ask here."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from typing import Any

from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.config.yaml_input import read_yaml
from study.plan.loading import study_from_dict
from study.record.io import write_yaml
from study.record.layout import StudyFolder


def check_folder(study: StudyConfig, folder: StudyFolder) -> None:
    """Raises `UserError` if the folder was planned with another base or other factors.

    Levels and replicates may change: a wider plan runs only what is new.
    """
    planned = planned_study(folder)
    if planned is None:
        return
    hint = f"choose another folder with --out, or remove {folder.path}"
    if list(planned.factors) != list(study.factors):
        raise UserError(
            f"{folder.config}: planned with the factors {', '.join(planned.factors)}, now "
            f"{', '.join(study.factors)}; {hint}"
        )
    for name, before in planned.base.model_dump().items():
        now = getattr(study.base, name)
        if now != before and name not in study.factors:
            raise UserError(f"{folder.config}: planned with {name}={before}, now {name}={now}; {hint}")
    starts = [each.start.model_dump(exclude={"trial", "checkpoint"}) for each in (planned, study)]  # they may move
    for name, before in starts[0].items():
        if before != starts[1][name]:
            raise UserError(f"{folder.config}: planned with start.{name}={before}, now {starts[1][name]}; {hint}")
    for factor, levels in planned.factors.items():
        for level in levels if isinstance(levels, list) else []:
            before, now = (one.joint.get(factor, {}).get(str(level), {}) for one in (planned, study))
            if now != before:
                raise UserError(f"{folder.config}: planned with {before} for {factor}={level}, now {now}; {hint}")
    if planned.search is None and study.search is None:
        return
    # Later suggestions follow from earlier ones: only the number of trials may grow.
    for name in ("factors", "replicates", "search"):
        before, now = getattr(planned, name), getattr(study, name)
        if name == "search" and before is not None and now is not None and now.n_trials >= before.n_trials:
            before = before.model_copy(update={"n_trials": now.n_trials})
        if before != now:
            raise UserError(f"{folder.config}: a search planned with {name}={before}, now {name}={now}; {hint}")


def check_locks(folder: StudyFolder) -> None:
    """Raises `UserError` where the file system has no locks, or such that lock nobody out.

    Asked of another process: some network file systems have locks that bind processes and not handles.
    """
    path = folder.path / f".lock-test-{os.getpid()}"
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            answer = subprocess.run([sys.executable, "-SEc", _TRY_LOCK, path], capture_output=True)  # noqa: S603
            locked_out = answer.returncode == _LOCKED_OUT
        except OSError:
            locked_out = False
    path.unlink()
    if not locked_out:
        raise UserError(
            f"--out {folder.path}: this file system has no file locks, which keep a trial from being trained twice; "
            "choose another with --out, or have it mounted with locks (Lustre: -o flock)"
        )


_LOCKED_OUT = 3
_TRY_LOCK = f"""
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit({_LOCKED_OUT})
"""


def planned_study(folder: StudyFolder) -> StudyConfig | None:
    """The study that a folder was planned with; None for a new folder. Raises `UserError` where it is damaged."""
    if not folder.config.exists():
        return None
    content = read_yaml(folder.config)
    if not isinstance(content.get("study"), dict):
        raise UserError(f"{folder.config}: study: expected keys and values; the file is damaged")
    return study_from_dict(content["study"], str(folder.config))


def write_study(
    study: StudyConfig, folder: StudyFolder, environment: dict[str, Any], space: ChoiceSpace = NORMALIZATION
) -> None:
    """study.yaml: the resolved study, what layers choose from, and with what it was run last."""
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if folder.config.exists():
        before = read_yaml(folder.config).get("provenance")
        created = before.get("created", created) if isinstance(before, dict) else created
    provenance = {**environment, "created": created}
    content = {"study": study.model_dump(mode="json"), "choice_space": space.to_dict(), "provenance": provenance}
    write_yaml(folder.config, content)
