"""Warm starts in the plan: which trial or file a trial starts from, whether it exists, and whether it fits.

A trial with a `start_rule` other than `scratch` starts from the trial of another cell of its study, from a trial of any
study, or from a file of weights, as the study's section `start` says. This module completes the config of such a trial,
locates its start, and refuses what cannot work before anything is trained. How weights and choices are loaded is in
`study.training.warm_start`. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.config.datasets import DATASETS
from study.config.errors import UserError, allowed_names, format_value
from study.config.schema import StartConfig, StartRule, StudyConfig, TrialConfig, trial_id
from study.config.validation import check_level, explain_error, find_origin
from study.norms.names import effective_pool, parse_norm
from study.record.contents import DamagedFileError
from study.record.layout import StudyFolder, TrialFolder

OPTION_RULES: dict[str, tuple[StartRule, ...]] = {
    "start_epoch": ("frozen",),
    "start_fresh": ("argmax", "frozen", "permute", "shared"),
    "start_thaw": ("fine_tune", "frozen"),
}
"""The start rules that each option of a start applies to."""


@dataclass(frozen=True, kw_only=True)
class StartSource:
    """What the trials of a cell start from: the trials of another cell of their study, or a path outside of it.

    cell: the id of the other cell; empty for a path.
    path: a file of weights, the folder of a trial, or the folder of a cell with a trial for every replicate.
    by_replicate: whether `path` is the folder of a cell.
    """

    cell: str = ""
    path: str = ""
    by_replicate: bool = True

    def key(self, replicate: int) -> str | None:
        """The key of the trial of the same study to start from; None for a start outside of the study."""
        return f"{self.cell}-r{replicate}" if self.cell else None

    def locate(self, replicate: int, study: StudyFolder) -> Path:
        """The folder of the trial, or the file of weights, to start from."""
        return study.trial(self.cell, replicate).path if self.cell else self.locate_outside(replicate).absolute()

    def describe(self, replicate: int) -> str:
        """The key of the trial of the same study, or the path outside of it."""
        return self.key(replicate) or str(self.locate_outside(replicate))

    def locate_outside(self, replicate: int) -> Path:
        """The folder of the trial, or the file of weights, at `path`."""
        return Path(self.path, f"r{replicate}") if self.by_replicate else Path(self.path)


# ------------------------------------------------------------------------------------------- planning a cell


def build_config(study: StudyConfig, levels: Mapping[str, Any]) -> TrialConfig:
    """Returns the config of a cell, with the settings of its start and the id of what it starts from.

    Raises pydantic's `ValidationError` for a value that is not allowed.
    """
    config = study.apply_levels(levels)
    if config.start_rule == "scratch":
        return config
    options = {"start_epoch": study.start.epoch, "start_fresh": study.start.fresh, "start_thaw": study.start.thaw}
    given = {
        name: value for name, value in options.items()
        if value is not None and config.start_rule in OPTION_RULES[name]
    }  # fmt: skip
    return study.apply_levels(levels, {**study.start.base, **given, "start_source": _build_source_id(study, levels)})


def find_source(study: StudyConfig, levels: Mapping[str, Any], config: TrialConfig) -> StartSource | None:
    """Returns what the trials of a cell start from; None from scratch."""
    if config.start_rule == "scratch":
        return None
    if _is_outside(study.start):
        return _build_outside_source(study.start)
    source = _find_source_levels(study, levels)
    return StartSource(cell=study.build_trial_id(build_config(study, source), source))


def list_required_cells(study: StudyConfig, levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a cell and the cells of its study that it starts from, directly or not, in the order of training."""
    cells = [dict(levels)]
    while not _is_outside(study.start) and study.apply_levels(cells[0]).start_rule != "scratch":
        cells.insert(0, _find_source_levels(study, cells[0]))
    return cells


def _is_outside(start: StartConfig) -> bool:
    """Whether trials start from something outside of their study."""
    return start.trial is not None or start.checkpoint is not None


def _build_outside_source(start: StartConfig) -> StartSource:
    if start.checkpoint is not None:
        return StartSource(path=start.checkpoint, by_replicate=False)
    return StartSource(path=str(start.trial), by_replicate=_find_replicate(start) is None)


def _find_replicate(start: StartConfig) -> int | None:
    """The one replicate that `start.trial` names; None if it names the folder of a cell."""
    found = re.search(r"/r(\d+)/*$", start.trial or "")
    return int(found[1]) if found else None


def _find_source_levels(study: StudyConfig, levels: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of the same study that a cell with a start rule starts from.

    That cell may have a start rule itself. It then starts from its own cell at `scratch`, so that there is no cycle.
    """
    own = {"start_rule": study.base.start_rule, **levels}
    source = {**own, "start_rule": "scratch", **study.start.cell}
    return source if source != own else {**own, "start_rule": "scratch"}


def _find_source_config(study: StudyConfig, levels: Mapping[str, Any]) -> TrialConfig | None:
    """The config of the trial that a cell with a start rule starts from; None for a file of weights."""
    if not _is_outside(study.start):
        return build_config(study, _find_source_levels(study, levels))
    source = study.start.source
    return TrialConfig(**source) if isinstance(source, dict) else None


def _build_source_id(study: StudyConfig, levels: Mapping[str, Any]) -> str:
    """Identifies a start by its config or content, whatever study and folder it is in."""
    config, replicate = _find_source_config(study, levels), _find_replicate(study.start)
    if config is None:
        return str(study.start.source)
    return trial_id(config, []) + ("" if replicate is None else f"-r{replicate}")


# --------------------------------------------------------------------------------------- checking a cell


def check_start(study: StudyConfig, levels: Mapping[str, Any], config: TrialConfig) -> None:
    """Raises `ValueError` if a cell cannot start as its rule says."""
    _check_options(config)
    if config.start_rule == "scratch":
        return
    _check_rule(config)
    source = _find_source_config(study, levels)
    if source is None:
        if config.start_rule == "transplant":
            raise ValueError("start_rule=transplant: needs the switch weights of a trial; start.checkpoint is a file")
        return
    _check_pool(config, source)
    if config.start_rule != "transplant":
        _check_network(config, source)
        _check_split(config, source, study)


def check_source_is_planned(
    study: StudyConfig, levels: Mapping[str, Any], source: StartSource | None, planned: Collection[str]
) -> None:
    """Raises `ValueError` if a cell starts from a cell of its study that is not planned. `planned`: ids of cells."""
    if source is None or not source.cell or source.cell in planned:
        return
    start = _find_source_levels(study, levels)
    missing = {factor: level for factor, level in start.items() if level not in study.factors.get(factor, [])}
    cell = ", ".join(f"{factor}={level}" for factor, level in (missing or start).items())
    raise ValueError(
        f"it starts from a cell that is not planned: {cell}{' is not a level' if missing else ''}; "
        "add it, or name another in start.cell"
    )


def _check_options(config: TrialConfig) -> None:
    rule = config.start_rule
    for option, rules in OPTION_RULES.items():
        if getattr(config, option) and rule not in rules:
            raise ValueError(f"{option}: needs start_rule={' or '.join(rules)}; here it is {rule}")


def _check_rule(config: TrialConfig) -> None:
    """Checks that a cell can follow its start rule, whatever it starts from."""
    rule, spec = config.start_rule, parse_norm(config.norm)
    if config.start_epoch and config.start_fresh:
        raise ValueError(f"start_epoch={config.start_epoch}: not allowed with start_fresh=True; allowed: 0")
    if config.start_epoch and config.start_epoch >= config.epochs:
        raise ValueError(f"start_epoch={config.start_epoch}: needs more epochs than that; here are {config.epochs}")
    if config.start_thaw and (spec.kind != "ssn" or (rule == "frozen" and not config.start_epoch)):
        raise ValueError(
            f"start_thaw: needs norm=ssn and switch weights that are trained; here {config.norm}, start_rule={rule}"
        )
    controls = (None, "tied", "shared", "stage") if rule == "frozen" else (None,)
    has_choice = spec.is_switch and spec.control in controls
    if rule != "fine_tune" and not (has_choice and len(effective_pool(spec, config.statistics_batch)) > 1):
        raise ValueError(f"start_rule={rule}: norm={config.norm} has no choice for each layer; allowed: sn, ssn")


def _check_pool(config: TrialConfig, source: TrialConfig) -> None:
    own, other = (effective_pool(each.norm, each.statistics_batch) for each in (config, source))
    if own != other:
        raise ValueError(f"its pool is {' '.join(own)}; that of the trial it starts from is {' '.join(other)}")
    if config.start_rule == "transplant" and not parse_norm(source.norm).is_switch:
        raise ValueError(f"start_rule=transplant: the start trial's norm={source.norm} has no choices")


def _check_network(config: TrialConfig, source: TrialConfig) -> None:
    """Checks that the weights of the start trial fit the network."""
    for name in ("depth", "width", "norm"):
        own, other = getattr(config, name), getattr(source, name)
        if own != other:
            raise ValueError(
                f"{name}={own} does not fit the trial it starts from, {name}={other}; "
                "only start_rule=transplant allows another"
            )
    own, other = (DATASETS[each.dataset].channels for each in (config, source))
    if own != other:
        raise ValueError(
            f"images of {config.dataset} have {own} channels; those of {source.dataset}, which the trial it starts "
            f"from was trained on, have {other}"
        )


def _check_split(config: TrialConfig, source: TrialConfig, study: StudyConfig) -> None:
    """Checks that no image of the validation split was in the training split of the start trial."""
    if config.start_fresh or source.dataset != config.dataset:
        return
    replicate = _find_replicate(study.start)
    if replicate is not None and (study.replicates > 1 or replicate > 0):
        raise ValueError(
            f"start.trial={study.start.trial}: every replicate has its own split; validation images of others were "
            f"training images of r{replicate}; allowed: the folder without r{replicate}"
        )
    if config.split_sizes[1] > source.split_sizes[1]:
        raise ValueError(
            f"validation_fraction={config.validation_fraction}: larger than {source.validation_fraction}, that of the "
            "trial it starts from"
        )


# ----------------------------------------------------------------------- reading the section of a study file


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
    if study.search is not None and not _is_outside(start):
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
            raise UserError(f"{where}: start.base.{name}: {allowed_names(name, allowed)}")
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
        outside = _build_outside_source(start)
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
