"""Reads a study: a scale file, overlaid by a study file, overlaid by `--set key=value`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from study.config.errors import UserError, allowed_names
from study.config.schema import RunConfig, StudyConfig, TrialConfig
from study.config.validation import SECTIONS, find_origin, validate_study
from study.config.yaml_input import check_mapping, parse_yaml, read_yaml
from study.plan.warm_start import resolve_start

CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


DEFAULT_SCALE = "laptop"


def config_folder() -> Path:
    """Where the studies and scales lie: inside the package when installed, beside it in a checkout."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return folder
    raise UserError(f"no configs folder: looked for {' and '.join(map(str, CONFIG_FOLDERS))}")


def available(kind: Literal["studies", "scales"]) -> dict[str, Path]:
    """Name to file of every study or scale."""
    return {path.stem: path for path in sorted((config_folder() / kind).glob("*.yaml"))}


def load_study(study: str, scale: str = DEFAULT_SCALE, overrides: Sequence[str] = ()) -> StudyConfig:
    """Reads a study (a name, or the path of a YAML file) at a scale, with `key=value` overrides applied.

    Raises `UserError`, one line, for anything that a user can get wrong.
    """
    study_file, scale_file = _find("studies", study), _find("scales", scale)
    scale_layer, study_layer = read_yaml(scale_file), read_yaml(study_file)
    origin: dict[str, str] = {"": str(study_file)}
    merged: dict[str, Any] = {"name": study_file.stem, "scale": scale_file.stem}
    # A scale offers levels for any factor; a study takes those of the factors it names (with an empty value). What goes
    # with a level, it takes for whatever factors it has.
    offered = check_mapping(scale_layer.pop("factors", {}), "factors", scale_file)
    spare = set(check_mapping(scale_layer.get("joint", {}), "joint", scale_file))
    spare -= set(check_mapping(study_layer.get("joint", {}), "joint", study_file))
    wanted = check_mapping(study_layer.pop("factors", {}), "factors", study_file)
    _overlay(merged, scale_layer, str(scale_file), origin)
    for described in (merged, origin):
        described.pop("title", None)  # a scale's own line in the listing
    _overlay(merged, study_layer, str(study_file), origin)
    merged["factors"] = {}
    for factor, levels in wanted.items():
        source = study_file
        if levels is None:
            if factor in TrialConfig.model_fields and factor not in offered:
                raise UserError(f"{scale_file}: factors.{factor}: no levels here, and {study_file} leaves them open")
            levels, source = offered.get(factor, list(merged.get("joint", {}).get(factor, {}))), scale_file
        _overlay(merged, {"factors": {factor: levels}}, str(source), origin)
    for override in overrides:
        layer = _read_override(override, merged)
        _overlay(merged, layer, f"--set {override}", origin)
        spare -= set(layer["joint"]) if isinstance(layer.get("joint"), dict) else set()
    if isinstance(merged["factors"], dict) and isinstance(merged.get("joint"), dict):
        for factor in spare - merged["factors"].keys():
            merged["joint"].pop(factor, None)
    _drop_offered_start(merged, {path for path, source in origin.items() if source == str(scale_file)})
    if isinstance(merged.get("start"), dict) and merged["start"].get("source") is not None:
        raise UserError(
            f"{find_origin('start.source', origin)}: start.source: it follows from start.trial or checkpoint"
        )
    return resolve_start(validate_study(merged, origin), find_origin("start", origin))


def _drop_offered_start(merged: dict[str, Any], offered: set[str]) -> None:
    """Drops what a scale has of a start cell where the study has no such factor, or starts from elsewhere."""
    start = merged.get("start")
    cell = start.get("cell") if isinstance(start, dict) else None
    if not isinstance(start, dict) or not isinstance(cell, dict):
        return
    elsewhere = start.get("trial") is not None or start.get("checkpoint") is not None
    start["cell"] = {
        factor: level for factor, level in cell.items()
        if f"start.cell.{factor}" not in offered or not (elsewhere or factor not in merged["factors"])
    }  # fmt: skip


def _find(kind: Literal["studies", "scales"], name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    files = available(kind)
    if name not in files:
        flag = {"studies": "study", "scales": "scale"}[kind]
        raise UserError(f"--{flag} {name}: unknown {flag}; {allowed_names(name, files)}")
    return files[name]


def _overlay(target: dict[str, Any], layer: dict[str, Any], source: str, origin: dict[str, str], at: str = "") -> None:
    """Merges `layer` into `target` key by key and remembers which source set what."""
    for key, value in layer.items():
        key = str(key)  # of a level: 2, true
        path = f"{at}{key}"
        if isinstance(value, dict) and isinstance(target.get(key, {}), dict):
            _overlay(target.setdefault(key, {}), value, source, origin, f"{path}.")
        else:
            target[key] = value
        origin[path] = source


def _read_override(override: str, merged: dict[str, Any]) -> dict[str, Any]:
    """`key=value` as a layer."""
    key, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"--set {override}: expected key=value")
    path, value = _resolve_key(key, merged), parse_yaml(text, f"--set {override}")
    if re.fullmatch(r"factors\.\w+", path) and not isinstance(value, (list, dict)):
        value = [value]  # one level
    return _nest(path, value)


def _nest(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _resolve_key(key: str, merged: dict[str, Any]) -> str:
    """A bare name may stand for a factor, a field of the base or of a section: `epochs` is `base.epochs`."""
    head = key.split(".")[0]
    if head in StudyConfig.model_fields:
        return key
    if head in merged["factors"]:
        return f"factors.{key}"
    for section, model in SECTIONS.items():
        if head in model.model_fields and section != "start":  # whose names say nothing by themselves
            return f"{section}.{key}"
    names = [*StudyConfig.model_fields, *TrialConfig.model_fields, *RunConfig.model_fields]
    raise UserError(f"--set {key}: unknown key; {allowed_names(head, names)}")
