"""Builds a `StudyConfig` from plain values, or raises an error of one line: file, key, value, what is allowed.

`origin` maps the dotted path of a setting to the file or flag that set it; the empty path is the study file.
The section `start` depends on the plan, and is checked in `study.plan.warm_start_section`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sized
from typing import Any

from pydantic import BaseModel, ValidationError

from study.config.errors import KEYS, MAX_VALUE, UserError, allowed_names, format_value, shorten
from study.config.schema import PATTERNS, SECTIONS, MarginConfig, Range, StudyConfig, TrialConfig, build_joint_key
from study.config.yaml_input import parse_yaml


def validate_study(merged: dict[str, Any], origin: dict[str, str]) -> StudyConfig:
    """Returns the study that `merged` describes. Raises `UserError`, which names the origin of the bad setting."""
    if not isinstance(merged.get("factors", {}), dict):
        where = find_origin("factors", origin)
        raise UserError(f"{where}: factors: {format_value(merged['factors'])}: expected factors and their levels")
    factors = {name: _parse_range(name, levels, origin) for name, levels in merged.get("factors", {}).items()}
    try:
        study = StudyConfig(**{**merged, "factors": factors})
    except ValidationError as error:
        raise UserError(_format_error(error, origin)) from None
    _check_replicates(study, origin)
    study = study.model_copy(update={"joint": _normalize_joint(study, origin)})
    _check_joint(study, origin)
    normalized = {factor: _check_factor(study, factor, origin) for factor in study.factors}
    _check_blocks(study, origin)
    _check_tuned(study, origin)
    return study.model_copy(update={"factors": normalized})


def find_origin(path: str, origin: dict[str, str]) -> str:
    """The file or flag that set a setting, or the nearest setting above it."""
    while path and path not in origin:
        path = path.rpartition(".")[0]
    return origin.get(path, origin[""])


def check_level(study: StudyConfig, factor: str, level: Any, where: str) -> TrialConfig:
    """Returns the config with one factor at `level` and all others at their base level.

    Raises `UserError` if the level is not allowed.
    """
    if factor not in TrialConfig.model_fields and (not isinstance(level, str) or level not in study.joint[factor]):
        raise UserError(f"{where}: {format_value(level)}: {allowed_names(level, study.joint[factor])}")
    try:
        return study.apply_levels({factor: level})
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0] if first["loc"] else factor
        # The setting may be one that `joint` adds to the level.
        setting = "" if field == factor else f"{field}: {format_value(first['input'])}: "
        raise UserError(f"{where}: {format_value(level)}: {setting}{explain_error(first)}") from None


def explain_error(error: Any) -> str:
    """What is allowed instead, from one of pydantic's error details."""
    value = error["input"]
    if isinstance(value, str) and "," in re.sub(r"\[.*?\]", "", value):  # `8,14`, but not `sn[in,ln]`
        return f"{_explain(error)}; a list is written in brackets: [{shorten(value, MAX_VALUE)}]"
    return _explain(error)


def _explain(error: Any) -> str:
    if error["type"] in ("dict_type", "model_type"):
        return "expected keys and values"
    if isinstance(error["input"], list) and error["type"].endswith(("_type", "literal_error")):
        return "expected one value, not a list"
    if error["type"] == "literal_error":
        return allowed_names(error["input"], re.findall(r"[\w.-]+", error["ctx"]["expected"].replace(" or ", " ")))
    if error["type"] == "string_pattern_mismatch":
        return f"allowed: {PATTERNS[error['ctx']['pattern']]}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"]).removeprefix("Input ")


# ------------------------------------------------------------------------------------- checks across settings


def _check_replicates(study: StudyConfig, origin: dict[str, str]) -> None:
    """Checks what is possible only with one replicate, or only with several: a pruner, seeds varied apart."""
    if study.seeds.apart and (study.search or study.replicates < 2):
        where, needs = find_origin("seeds.apart", origin), "a grid" if study.search else "at least 2 replicates"
        raise UserError(f"{where}: seeds.apart: seeds can be varied apart in a study with {needs}")
    if study.search and study.search.pruner != "none" and study.replicates > 1:
        where = find_origin("search.pruner", origin)
        raise UserError(f"{where}: search.pruner: a pruner compares single trials; it needs replicates: 1")


def _check_joint(study: StudyConfig, origin: dict[str, str]) -> None:
    """Checks that `joint` names levels of factors, and that no field is set by two factors."""
    owners = {factor: factor for factor in study.factors if factor in TrialConfig.model_fields}
    for factor, settings in study.joint.items():
        where = f"{find_origin(f'joint.{factor}', origin)}: joint.{factor}"
        if factor not in study.factors:
            raise UserError(f"{where}: no such factor; {allowed_names(factor, study.factors)}")
        _check_count(settings, where)
        given = study.factors[factor]
        used = {_normalize_key(study, factor, level) for level in given} if isinstance(given, list) else set(settings)
        for level, fields in settings.items():
            for field in fields:
                if field not in TrialConfig.model_fields:
                    names = allowed_names(field, TrialConfig.model_fields, KEYS)
                    raise UserError(f"{where}.{level}.{field}: unknown key; {names}")
                if level in used and (owners.setdefault(field, factor) != factor or field == factor):
                    raise UserError(f"{where}.{level}.{field}: the factor {owners[field]} sets it")
            check_level(study, factor, _parse_key(factor, level, where), f"{where}.{level}")


def _normalize_joint(study: StudyConfig, origin: dict[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns `joint` with each level in the spelling that it has as a level of its factor: `1` is `1.0`."""
    joint: dict[str, dict[str, dict[str, Any]]] = {}
    for factor, settings in study.joint.items():
        where, levels = f"{find_origin(f'joint.{factor}', origin)}: joint.{factor}", joint.setdefault(factor, {})
        for text, fields in settings.items():
            key = _normalize_key(study, factor, _parse_key(factor, text, where))
            if key in levels:
                raise UserError(f"{where}: level {text} appears twice")
            levels[key] = fields
    return joint


def _parse_key(factor: str, text: str, where: str) -> Any:
    """Returns the level that a key of `joint` names."""
    if factor not in TrialConfig.model_fields:
        return text
    return None if text == "None" else parse_yaml(text, where)


def _normalize_key(study: StudyConfig, factor: str, level: Any) -> str:
    """Returns the text that names a level in its canonical spelling; as it is for a level that is not allowed."""
    if factor in TrialConfig.model_fields:
        with contextlib.suppress(ValidationError):  # reported by `check_level`
            level = getattr(TrialConfig(**{**study.base.model_dump(), factor: level}), factor)
    return build_joint_key(level)


_RANGE_FIELDS = {name: field.annotation for name, field in TrialConfig.model_fields.items()
                 if field.annotation in (int, float) and name != "depth"}  # fmt: skip
MAX_LEVELS = 1000
"""Number of levels of a factor, in `factors` and in `joint`."""


def _check_factor(study: StudyConfig, factor: str, origin: dict[str, str]) -> list[Any] | Range:
    """Returns a factor's levels in their canonical spelling; two spellings of a level would train one cell twice."""
    where = f"{find_origin(f'factors.{factor}', origin)}: factors.{factor}"
    if factor not in {*TrialConfig.model_fields, *study.joint}:
        names = allowed_names(factor, [*study.joint, *TrialConfig.model_fields], KEYS)
        raise UserError(f"{where}: unknown factor; {names}")
    given = study.factors[factor]
    if isinstance(given, Range):
        if study.search is None:
            raise UserError(f"{where}: a range needs a search section; a grid needs a list of levels")
        if factor not in _RANGE_FIELDS:
            raise UserError(f"{where}: a range is not allowed; give a list. Ranges: {', '.join(_RANGE_FIELDS)}")
        # The field's type decides what is drawn, not how the ends are written: from 0 to 1, half a weight decay.
        low, high = (getattr(check_level(study, factor, bound, where), factor) for bound in (given.low, given.high))
        return given.model_copy(update={"low": low, "high": high})
    if not given:
        raise UserError(f"{where}: no levels")
    _check_count(given, where)
    cells: dict[TrialConfig, Any] = {}
    for level in given:
        cell = check_level(study, factor, level, where)
        if cell in cells:
            raise UserError(f"{where}: level {format_value(level)} appears twice")
        cells[cell] = level
    return [getattr(cell, factor, level) for cell, level in cells.items()]


def _check_count(levels: Sized, where: str) -> None:
    if len(levels) > MAX_LEVELS:
        raise UserError(f"{where}: {len(levels)} levels; allowed: at most {MAX_LEVELS}")


def _check_blocks(study: StudyConfig, origin: dict[str, str]) -> None:
    """Checks that every block names factors, and that every factor is in a block."""
    where = f"{find_origin('blocks', origin)}: blocks"
    if study.blocks and study.search is not None:
        raise UserError(f"{where}: a search suggests cells itself; allowed: none")
    for block in study.blocks:
        for name in block or ["no factor"]:
            if name not in study.factors:
                raise UserError(f"{where}: {format_value(block)}: {name}: {allowed_names(name, study.factors)}")
            if block.count(name) > 1:
                raise UserError(f"{where}: {format_value(block)}: {name} appears twice")
    for number, block in enumerate(study.blocks):
        if any(set(block) == set(other) for other in study.blocks[:number]):
            raise UserError(f"{where}: {format_value(block)}: the block appears twice")
    for factor in study.factors:
        if study.blocks and not any(factor in block for block in study.blocks):
            raise UserError(f"{where}: factor {factor} is in no block; its levels would not be planned")


def _check_tuned(study: StudyConfig, origin: dict[str, str]) -> None:
    """Checks that `analysis.tuned` names factors of the study, each once, other than the norm."""
    where = f"{find_origin('analysis.tuned', origin)}: analysis.tuned"
    allowed = [factor for factor in study.factors if factor != "norm"]
    for number, factor in enumerate(study.analysis.tuned):
        if factor not in allowed:
            reason = "norms are compared, and cannot be tuned" if factor == "norm" else "no such factor"
            raise UserError(f"{where}: {factor}: {reason}; {allowed_names(factor, allowed)}")
        if factor in study.analysis.tuned[:number]:
            raise UserError(f"{where}: {factor} appears twice")


# ------------------------------------------------------------------------------------- errors of single settings


def _parse_range(factor: str, levels: Any, origin: dict[str, str]) -> Any:
    """Builds a `Range` from a mapping. pydantic's own error would also mention the list form."""
    if not isinstance(levels, dict):
        return levels
    try:
        return Range(**levels)
    except ValidationError as error:
        key = error.errors()[0]["loc"][:1]
        wrong = [each for each in error.errors() if each["loc"][:1] == key][-1]  # as a float, rather than as an int
        path = ".".join(["factors", factor, *map(str, key)])
        where = find_origin(path, origin)
        raise UserError(f"{where}: {path}: {explain_error(wrong)}; a range has low, high and log") from None


def _format_error(error: ValidationError, origin: dict[str, str]) -> str:
    """Formats the first of pydantic's errors as file, key, value, what is allowed."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        *parents, key = map(str, first["loc"])
        model: type[BaseModel] = SECTIONS[parents[0]] if parents else StudyConfig
        if parents == ["analysis", "margins"]:
            model = MarginConfig
        dotted = ".".join([*parents, key])
        hint = _find_home(key) or allowed_names(key, model.model_fields, KEYS)
        return f"{find_origin(dotted, origin)}: {dotted}: unknown key; {hint}"
    path = _find_path(first)
    value = "" if first["type"] == "missing" else f" {format_value(first['input'])}:"
    is_list = path.startswith("base.") and isinstance(first["input"], list) and first["type"] != "value_error"
    hint = f"; to vary it, give levels: {path.replace('base.', 'factors.')}" if is_list else ""
    members = dict.fromkeys(explain_error(each) for each in error.errors() if _find_path(each) == path)
    return f"{find_origin(path, origin)}: {path}:{value} {', or '.join(members)}{hint}"


def _find_path(error: Any) -> str:
    """The path of a setting. pydantic gives an error for each member of a union, with its name in the location."""
    return ".".join(str(part) for part in error["loc"] if str(part) in _ALL_KEYS or not isinstance(part, str))


def _find_home(key: str) -> str:
    """Where in a study a key belongs, if it is that of another section; empty if it is that of none."""
    if key in StudyConfig.model_fields:
        return f"{key} belongs at the top level of the study"
    sections = [section for section, model in SECTIONS.items() if key in model.model_fields]
    return f"{key} belongs under {' or '.join(sections)}" if sections else ""


_MODELS: tuple[type[BaseModel], ...] = (StudyConfig, Range, MarginConfig, *SECTIONS.values())
_ALL_KEYS = {key for model in _MODELS for key in model.model_fields}
