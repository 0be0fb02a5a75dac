"""Turns plain values into a `StudyConfig`, or into one line: file, key, value, what is allowed."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from study.config.errors import UserError, allowed_names
from study.config.schema import (
    START_OPTIONS,
    AnalysisConfig,
    LaunchConfig,
    Range,
    RunConfig,
    SearchConfig,
    StartConfig,
    StudyConfig,
    TrackingConfig,
    TrialConfig,
)
from study.config.yaml_input import parse_yaml


def study_from_dict(data: dict[str, Any], source: str) -> StudyConfig:
    """A study from its resolved form, as `study.yaml` of a run holds it."""
    return validate_study({str(key): value for key, value in data.items()}, {"": source})


SECTIONS: dict[str, type[BaseModel]] = {
    "base": TrialConfig,
    "start": StartConfig,
    "run": RunConfig,
    "launch": LaunchConfig,
    "tracking": TrackingConfig,
    "search": SearchConfig,
    "analysis": AnalysisConfig,
}


def validate_study(merged: dict[str, Any], origin: dict[str, str]) -> StudyConfig:
    """Returns the study that `merged` describes. Raises `UserError`, which names the `origin` of the bad setting."""
    if not isinstance(merged.get("factors", {}), dict):
        where = find_origin("factors", origin)
        raise UserError(f"{where}: factors: {merged['factors']!r}: expected factors and their levels")
    factors = {name: _read_range(name, levels, origin) for name, levels in merged.get("factors", {}).items()}
    start, base = merged.get("start"), merged.get("base", {})
    if isinstance(start, dict) and isinstance(base, dict) and start.get("rule") is not None:
        origin["base.start_rule"] = find_origin("start.rule", origin)
        merged = {**merged, "base": {**base, "start_rule": start["rule"]}}
    try:
        config = StudyConfig(**{**merged, "factors": factors})
    except ValidationError as error:
        raise UserError(_one_line(error, StudyConfig, origin)) from None
    if config.search and config.search.pruner != "none" and config.replicates > 1:
        where = find_origin("search.pruner", origin)
        raise UserError(f"{where}: search.pruner: a pruner compares single trials; it needs replicates: 1")
    _check_joint(config, origin)
    checked = {factor: _check_levels(config, factor, origin) for factor in config.factors}
    _check_blocks(config, origin)
    return _check_start(config.model_copy(update={"factors": checked}), origin)


def _check_start(study: StudyConfig, origin: dict[str, str]) -> StudyConfig:
    """The study with the levels of its start cell in their one spelling. Raises `UserError` where it makes no sense."""
    start, where = study.start, find_origin("start", origin)
    if study.values("start_source") != [None]:
        raise UserError(f"{find_origin('base.start_source', origin)}: start_source: it follows from the study's start")
    rules = [rule for rule in study.values("start_rule") if rule != "scratch"]
    if not rules:
        if start != StartConfig():
            raise UserError(f"{where}: start: nothing starts there; give start.rule, or levels of start_rule")
        return study
    if bool(start.cell) + bool(start.trial) + bool(start.checkpoint) > 1:
        raise UserError(f"{where}: start: one of cell, trial and checkpoint is allowed")
    if study.search is not None and not start.elsewhere:
        raise UserError(f"{where}: start: a search has no cells to start from; allowed: start.trial, start.checkpoint")
    for option, fitting in START_OPTIONS.items():
        name = option.removeprefix("start_")
        if getattr(start, name) and not set(rules) & set(fitting):
            raise UserError(f"{where}: start.{name}: of start_rule={' or '.join(fitting)}; here it is {rules[0]}")
    for name in start.base:
        if name not in TrialConfig.model_fields or name in study.factors or name.startswith("start_"):
            allowed = [known for known in TrialConfig.model_fields
                       if known not in study.factors and not known.startswith("start_")]  # fmt: skip
            raise UserError(f"{where}: start.base.{name}: {allowed_names(name, allowed)}")
    try:
        TrialConfig(**{**study.base.model_dump(), **start.base})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: start.base.{first['loc'][0]}: {first['input']!r}: {_explain(first)}") from None
    cell = {}
    for factor, level in start.cell.items():
        if factor not in study.factors:
            raise UserError(f"{where}: start.cell.{factor}: is no factor; {allowed_names(factor, study.factors)}")
        alone = study.model_copy(update={"start": StartConfig()})
        cell[factor] = getattr(_check_level(alone, factor, level, f"{where}: start.cell.{factor}"), factor, level)
    return study.model_copy(update={"start": start.model_copy(update={"cell": cell, "rule": None})})


def _read_range(factor: str, levels: Any, origin: dict[str, str]) -> Any:
    """A range by itself, so that an error speaks of the range and not of the list that it might have been."""
    if not isinstance(levels, dict):
        return levels
    try:
        return Range(**levels)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"type": "", "msg": str(error), "loc": ()}
        path = ".".join(["factors", factor, *map(str, first["loc"])])
        raise UserError(
            f"{find_origin(path, origin)}: {path}: {_explain(first)}; a range has low, high and log"
        ) from None


def _check_levels(config: StudyConfig, factor: str, origin: dict[str, str]) -> list[Any] | Range:
    """The levels of a factor in their one spelling: two names of one level would train one cell twice."""
    where = f"{find_origin(f'factors.{factor}', origin)}: factors.{factor}"
    if factor not in {*TrialConfig.model_fields, *config.joint}:
        raise UserError(f"{where}: unknown factor; {allowed_names(factor, [*config.joint, *TrialConfig.model_fields])}")
    given = config.factors[factor]
    if isinstance(given, Range) and config.search is None:
        raise UserError(f"{where}: a range needs a search section; a grid needs a list of levels")
    if isinstance(given, Range) and factor not in _CONTINUOUS:
        raise UserError(f"{where}: not every number between is allowed; give a list. Ranges: {', '.join(_CONTINUOUS)}")
    levels = [given.low, given.high] if isinstance(given, Range) else given
    alone = config.model_copy(update={"start": StartConfig()})  # what is wrong with a start is not the level's fault
    if not levels:
        raise UserError(f"{where}: no levels")
    cells: list[TrialConfig] = []
    for level in levels:
        cell = _check_level(alone, factor, level, where)
        if cell in cells:
            raise UserError(f"{where}: level {level!r} appears twice")
        cells.append(cell)
    spelled = [getattr(cell, factor, level) for cell, level in zip(cells, levels, strict=True)]
    return given if isinstance(given, Range) else spelled


def _check_level(config: StudyConfig, factor: str, level: Any, where: str) -> TrialConfig:
    """The cell of one level, others as in the base."""
    if factor not in TrialConfig.model_fields and (not isinstance(level, str) or level not in config.joint[factor]):
        raise UserError(f"{where}: {level!r}: {allowed_names(level, config.joint[factor])}")
    try:
        return config.cell({factor: level})
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0] if first["loc"] else factor
        among = "" if field == factor else f"{field}: {first['input']!r}: "
        raise UserError(f"{where}: {level!r}: {among}{_explain(first)}") from None


def _check_joint(config: StudyConfig, origin: dict[str, str]) -> None:
    """What goes with a level is known, belongs to one factor, and to a level that there can be."""
    owners = {factor: factor for factor in config.factors if factor in TrialConfig.model_fields}
    for factor, settings in config.joint.items():
        where = f"{find_origin(f'joint.{factor}', origin)}: joint.{factor}"
        if factor not in config.factors:
            raise UserError(f"{where}: no such factor; {allowed_names(factor, config.factors)}")
        given = config.factors[factor]
        used = {str(level) for level in given} if isinstance(given, list) else set(settings)
        for level, fields in settings.items():
            for field in fields:
                if field not in TrialConfig.model_fields:
                    names = allowed_names(field, TrialConfig.model_fields)
                    raise UserError(f"{where}.{level}.{field}: unknown key; {names}")
                if level in used and (owners.setdefault(field, factor) != factor or field == factor):
                    raise UserError(f"{where}.{level}.{field}: the factor {owners[field]} sets it")
            value = parse_yaml(level, where) if factor in TrialConfig.model_fields else level
            _check_level(config, factor, value, f"{where}.{level}")


def _check_blocks(config: StudyConfig, origin: dict[str, str]) -> None:
    """Every factor is in a block, and every block names factors."""
    where = f"{find_origin('blocks', origin)}: blocks"
    if config.blocks and config.search is not None:
        raise UserError(f"{where}: a search suggests cells itself; allowed: none")
    for block in config.blocks:
        for name in block or ["no factor"]:
            if name not in config.factors:
                raise UserError(f"{where}: {block}: {name}: {allowed_names(name, config.factors)}")
    for factor in config.factors:
        if config.blocks and not any(factor in block for block in config.blocks):
            raise UserError(f"{where}: {factor} is in none of them; its levels would not be planned")


_CONTINUOUS = [name for name, field in TrialConfig.model_fields.items()
               if field.annotation in (int, float) and name != "depth"]  # fmt: skip


def _one_line(error: ValidationError, model: type[BaseModel], origin: dict[str, str]) -> str:
    """The first of pydantic's errors as file, key, value, what is allowed."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if str(part) in _all_keys() or not isinstance(part, str))
    if first["type"] == "extra_forbidden":
        *parents, key = map(str, first["loc"])
        holder = (SECTIONS[parents[0]] if parents else model).model_fields
        dotted = ".".join([*parents, key])
        return f"{find_origin(dotted, origin)}: {dotted}: unknown key; {allowed_names(key, holder)}"
    value = "" if first["type"] == "missing" else f" {first['input']!r}:"
    return f"{find_origin(path, origin)}: {path}:{value} {_explain(first)}"


def _all_keys() -> set[str]:
    """Every real key; pydantic also puts names of union members into an error's location."""
    keys = set(StudyConfig.model_fields) | set(Range.model_fields)
    for section in SECTIONS.values():
        keys |= set(section.model_fields)
    return keys


def _explain(error: Any) -> str:
    if error["type"] == "literal_error":
        return allowed_names(error["input"], re.findall(r"[\w.-]+", error["ctx"]["expected"].replace(" or ", " ")))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"]).removeprefix("Input ")


def find_origin(path: str, origin: dict[str, str]) -> str:
    """The file or flag that set the key, or the nearest key above it."""
    while path and path not in origin:
        path = path.rpartition(".")[0]
    return origin.get(path, origin[""])
