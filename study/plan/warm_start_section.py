"""Reads the section `start` of a study: checks it, and identifies a start outside of the study."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.config.errors import KEYS, UserError, allowed_names, format_value
from study.config.schema import StartConfig, StudyConfig, TrialConfig
from study.config.validation import check_level, explain_error, find_origin
from study.plan.warm_start import OPTION_RULES, build_outside_source, is_outside
from study.record.contents import DamagedFileError
from study.record.layout import TrialFolder


def drop_offered_cell(merged: dict[str, Any], origin: dict[str, str], scale: str) -> None:
    """Removes levels of `start.cell` that the scale offers and that the study cannot use.

    Those are levels of factors that the study does not have, and all of them if its trials start from outside.
    """
    start = merged.get("start")
    cell = start.get("cell") if isinstance(start, dict) else None
    if not isinstance(start, dict) or not isinstance(cell, dict):
        return
    outside = start.get("trial") is not None or start.get("checkpoint") is not None
    start["cell"] = {
        factor: level for factor, level in cell.items()
        if origin.get(f"start.cell.{factor}") != scale or not (outside or factor not in merged["factors"])
    }  # fmt: skip


def check_no_source(merged: dict[str, Any], origin: dict[str, str]) -> None:
    """Raises `UserError` if a user sets `start.source`, which `resolve_source` computes."""
    start = merged.get("start")
    if isinstance(start, dict) and start.get("source") is not None:
        where = find_origin("start.source", origin)
        raise UserError(f"{where}: start.source: computed from start.trial or start.checkpoint; it cannot be set")


def move_rule_to_base(merged: dict[str, Any], origin: dict[str, str]) -> dict[str, Any]:
    """Returns the settings with `start.rule` as the base's `start_rule`."""
    start, base = merged.get("start"), merged.get("base", {})
    if not isinstance(start, dict) or not isinstance(base, dict) or start.get("rule") is None:
        return merged
    origin["base.start_rule"] = find_origin("start.rule", origin)
    return {**merged, "base": {**base, "start_rule": start["rule"]}}


def check_section(study: StudyConfig, origin: dict[str, str]) -> StudyConfig:
    """Returns the study with the levels of `start.cell` in their canonical spelling.

    Raises `UserError` if the section `start` does not fit the study.
    """
    start, where = study.start, find_origin("start", origin)
    if study.list_values("start_source") != [None]:
        source = find_origin("base.start_source", origin)
        raise UserError(f"{source}: start_source: computed from the section start; it cannot be set")
    rules = [rule for rule in study.list_values("start_rule") if rule != "scratch"]
    if not rules:
        if start != StartConfig():
            raise UserError(f"{where}: start: no trial has a start rule; give start.rule, or levels of start_rule")
        return study
    if bool(start.cell) + bool(start.trial) + bool(start.checkpoint) > 1:
        raise UserError(f"{where}: start: one of cell, trial and checkpoint is allowed")
    if study.search is not None and not is_outside(start):
        raise UserError(f"{where}: start: a search has no cells to start from; allowed: start.trial, start.checkpoint")
    for option, allowed in OPTION_RULES.items():
        name = option.removeprefix("start_")
        if getattr(start, name) and not set(rules) & set(allowed):
            raise UserError(f"{where}: start.{name}: needs start_rule={' or '.join(allowed)}; here it is {rules[0]}")
    _check_base(study, where)
    cell = {factor: _check_start_level(study, factor, level, where) for factor, level in start.cell.items()}
    return study.model_copy(update={"start": start.model_copy(update={"cell": cell, "rule": None})})


def _check_base(study: StudyConfig, where: str) -> None:
    allowed = [name for name in TrialConfig.model_fields
               if name not in study.factors and not name.startswith("start_")]  # fmt: skip
    for name in study.start.base:
        if name not in allowed:
            raise UserError(f"{where}: start.base.{name}: {allowed_names(name, allowed, KEYS)}")
    try:
        TrialConfig(**{**study.base.model_dump(), **study.start.base})
    except ValidationError as error:
        first = error.errors()[0]
        value = f"{first['loc'][0]}: {format_value(first['input'])}"
        raise UserError(f"{where}: start.base.{value}: {explain_error(first)}") from None


def _check_start_level(study: StudyConfig, factor: str, level: Any, where: str) -> Any:
    if factor not in study.factors:
        raise UserError(f"{where}: start.cell.{factor}: is not a factor; {allowed_names(factor, study.factors)}")
    return getattr(check_level(study, factor, level, f"{where}: start.cell.{factor}"), factor, level)


# -------------------------------------------------------------------------------- reading a start outside


def resolve_source(study: StudyConfig, where: str) -> StudyConfig:
    """Returns the study with `start.source` read from what `start.trial` or `start.checkpoint` names.

    Raises `UserError` if that does not exist, is unfinished or is damaged. `where`: the file or flag that names it.
    """
    start = study.start
    if start.checkpoint is not None:
        file = Path(start.checkpoint)
        source: str | dict[str, object] = _build_digest(file, f"{where}: start.checkpoint={file}")
    elif start.trial is not None:
        outside = build_outside_source(start)
        folders = [TrialFolder(outside.locate_outside(replicate)) for replicate in range(study.replicates)]
        source, *_ = [_read_identity(folder, f"{where}: start.trial={start.trial}") for folder in folders]
    else:
        return study
    return study.model_copy(update={"start": start.model_copy(update={"source": source})})


def _build_digest(file: Path, where: str) -> str:
    try:
        return f"file-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None


def _read_identity(folder: TrialFolder, where: str) -> dict[str, object]:
    """The identity fields of a finished trial."""
    problem = _find_problem(folder)
    if problem is not None:
        raise UserError(f"{where}: {folder.path} {problem}")
    try:
        return TrialConfig(**folder.read_description()["config"]).identity_fields()
    except (DamagedFileError, TypeError, ValidationError):
        raise UserError(f"{where}: {folder.trial} is not a trial of this version") from None


def _find_problem(folder: TrialFolder) -> str | None:
    """Why no trial can start from this one; None if one can."""
    if not folder.path.is_dir():
        return "does not exist; expected the folder of a trial: runs/STUDY/trials/ID, or .../ID/r0"
    result, damaged = folder.check()
    if damaged:
        return f"is damaged: {', '.join(damaged)}"
    if result is None:
        return f"is unfinished: {folder.status()[0]}"
    if result["status"] != "done":
        return f"has no weights to start from: {result['status']}"
    return None if folder.last_checkpoint.exists() else f"has no {folder.last_checkpoint.name} any more"
