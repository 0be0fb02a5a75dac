"""Loads a study: a scale file, overlaid by a study file, overlaid by `--set key=value`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from study.config.choice_space import ChoiceSpace
from study.config.errors import KEYS, MAX_VALUE, UserError, allowed_names, describe_kind, shorten
from study.config.schema import SECTIONS, RunConfig, StudyConfig, TrialConfig
from study.config.validation import find_origin, validate_study
from study.config.yaml_input import MAX_DEPTH, check_mapping, parse_yaml, read_yaml
from study.plan import warm_start_section
from study.plan.analysis_plan import PlanRecord, parse_plan_record
from study.plan.trials import check_size

DEFAULT_SCALE = "laptop"
CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""Where studies and scales are: inside the package when installed, beside it in a checkout."""


def load_study(study: str, scale: str | None = None, overrides: Sequence[str] = ()) -> StudyConfig:
    """Loads a study (a name, or the path of a YAML file) at a scale, with `key=value` overrides applied.

    scale: None for the default. Raises `UserError`, one line, for any mistake of the user.
    """
    study_file, scale_file = _find_config("studies", study), _find_config("scales", scale or DEFAULT_SCALE)
    study_layer, scale_layer = _read_study(study_file), read_yaml(scale_file)
    origin: dict[str, str] = {"": str(study_file)}
    merged: dict[str, Any] = {"name": study_file.stem, "scale": scale_file.stem}

    levels = check_mapping(study_layer.pop("factors", {}), "factors", study_file)
    offered = check_mapping(scale_layer.pop("factors", {}), "factors", scale_file)
    joint = set(check_mapping(study_layer.get("joint", {}), "joint", study_file))
    offered_joint = set(check_mapping(scale_layer.get("joint", {}), "joint", scale_file))
    scale_layer.pop("title", None)  # describes the scale in the list of scales
    _overlay(merged, scale_layer, str(scale_file), origin)
    _overlay(merged, study_layer, str(study_file), origin)
    _overlay_factors(merged, levels, offered, study_file, scale_file, origin)
    for override in overrides:
        source = f"--set {shorten(override, MAX_VALUE)}"
        layer = _parse_override(override, source, merged)
        _overlay(merged, layer, source, origin)
        joint |= set(layer["joint"]) if isinstance(layer.get("joint"), dict) else set()
    _drop_offered_joint(merged, offered_joint - joint)
    if "scale" in origin:
        raise UserError(f"{origin['scale']}: scale: cannot be set here; --scale chooses it")
    warm_start_section.drop_offered_cell(merged, origin, str(scale_file))
    warm_start_section.check_no_source(merged, origin)
    return warm_start_section.resolve_source(_validate(merged, origin), find_origin("start", origin))


def override_study(study: StudyConfig, overrides: Sequence[str]) -> StudyConfig:
    """Returns a study with `key=value` overrides applied. Raises `UserError` for any mistake in them."""
    merged, origin = study.model_dump(mode="json"), {"": study.name}
    for override in overrides:
        source = f"--set {shorten(override, MAX_VALUE)}"
        _overlay(merged, _parse_override(override, source, merged), source, origin)
    return _validate(merged, origin)


def find_study_name(study: str, overrides: Sequence[str] = ()) -> str:
    """Returns the name of a study, which is that of its folder, without loading it."""
    given = [value for key, _, value in (override.partition("=") for override in overrides) if key == "name"]
    if given or not is_study_file(study):
        return given[-1] if given else study
    file = _find_config("studies", study)
    return str(_read_study(file).get("name", file.stem))


def is_study_file(study: str) -> bool:
    """Whether `study` is a YAML file or the name of a listed study, rather than of a folder of results alone."""
    return study.endswith((".yaml", ".yml")) or study in list_configs("studies")


def study_from_dict(data: dict[str, Any], source: str) -> StudyConfig:
    """Builds a study from its resolved form, as in a run's `study.yaml`. `source` is named in errors."""
    return _validate(data, {"": source})


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The content of `study.yaml` of a run.

    space: what layers choose from. provenance: command, commit and versions. plan: the plan of the analysis that was
    recorded when the study first ran; None where an older version wrote the file.
    """

    study: StudyConfig
    space: ChoiceSpace
    provenance: dict[str, Any]
    plan: PlanRecord | None

    @property
    def study_id(self) -> str:
        """The id of the folder, part of the names of its W&B runs; empty where an older version created the folder."""
        return str(self.provenance.get("id") or "")


def read_study_file(path: Path) -> StudyFile:
    """Reads `study.yaml` of a run. Raises `UserError` if the file is damaged."""
    content, source = read_yaml(path, recorded=True), str(path)
    if not isinstance(content.get("study"), dict):
        raise UserError(f"{source}: study: expected keys and values; the file is damaged")
    provenance = content.get("provenance")
    return StudyFile(
        study=study_from_dict(content["study"], source),
        space=ChoiceSpace.from_dict(content.get("choice_space"), source),
        provenance=provenance if isinstance(provenance, dict) else {},
        plan=parse_plan_record(content, source),
    )


def list_configs(kind: Literal["studies", "scales"]) -> dict[str, Path]:
    """Returns name and file of every study or scale."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return {path.stem: path for path in sorted((folder / kind).glob("*.yaml"))}
    raise UserError(f"no configs folder: looked for {' and '.join(map(str, CONFIG_FOLDERS))}")


def _find_config(kind: Literal["studies", "scales"], name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: {describe_kind(Path(name)) or 'no such file'}")
        return Path(name)
    files = list_configs(kind)
    if name not in files:
        flag = {"studies": "study", "scales": "scale"}[kind]
        raise UserError(describe_unknown(flag, name, files))
    return files[name]


def _read_study(file: Path) -> dict[str, Any]:
    """The content of a study file. Raises `UserError` for the `study.yaml` of a run."""
    content = read_yaml(file)
    if "provenance" in content:
        raise UserError(f"{file}: is the record of a run, which its folder names: --study NAME --out DIR")
    return content


def describe_unknown(flag: str, name: str, names: Iterable[str]) -> str:
    """The error for an unknown study or scale; for a folder of results, the flags that name it."""
    results, shown = Path(name), shorten(name, MAX_VALUE)
    if flag == "study" and (results / "study.yaml").is_file():
        words = ["--study", results.resolve().name, "--out", str(results.parent)]
        return f"--study {shown}: is a folder of results; to name it: {shlex.join(words)}"
    return f"--{flag} {shown}: unknown {flag}; {allowed_names(name, names)}"


def _validate(merged: dict[str, Any], origin: dict[str, str]) -> StudyConfig:
    study = warm_start_section.check_section(
        validate_study(warm_start_section.move_rule_to_base(merged, origin), origin), origin
    )
    check_size(study)
    return study


# ---------------------------------------------------------------------------------------------------- layers


def _overlay(target: dict[str, Any], layer: dict[str, Any], source: str, origin: dict[str, str], at: str = "") -> None:
    """Merges `layer` into `target` key by key, and notes `source` as the origin of what it sets."""
    for key, value in layer.items():
        path = f"{at}{key}"
        if isinstance(value, dict) and isinstance(target.get(key, {}), dict):
            _overlay(target.setdefault(key, {}), value, source, origin, f"{path}.")
        else:
            target[key] = value
        origin[path] = source


def _overlay_factors(
    merged: dict[str, Any],
    levels: dict[str, Any],
    offered: dict[str, Any],
    study_file: Path,
    scale_file: Path,
    origin: dict[str, str],
) -> None:
    """Sets the factors of the study. One without levels takes those that the scale offers, or those under `joint`."""
    merged["factors"] = {}
    for factor, given in levels.items():
        source = study_file
        if given is None:
            if factor in TrialConfig.model_fields and factor not in offered:
                raise UserError(f"{scale_file}: factors.{factor}: no levels here, and none in {study_file}")
            given, source = offered.get(factor, list(merged.get("joint", {}).get(factor, {}))), scale_file
        _overlay(merged, {"factors": {factor: given}}, str(source), origin)


def _drop_offered_joint(merged: dict[str, Any], offered: set[str]) -> None:
    """Removes what the scale adds to the levels of factors that the study does not have."""
    if isinstance(merged["factors"], dict) and isinstance(merged.get("joint"), dict):
        for factor in offered - merged["factors"].keys():
            merged["joint"].pop(factor, None)


# ------------------------------------------------------------------------------------------------- overrides


def _parse_override(override: str, source: str, merged: dict[str, Any]) -> dict[str, Any]:
    """Returns `key=value` as a layer. source: the flag, named in errors."""
    key, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"{source}: expected key=value")
    if not all(part.strip() for part in key.split(".")):
        raise UserError(f"{source}: a part of the key is empty; expected key=value, such as epochs=3 or run.threads=1")
    if key.count(".") > MAX_DEPTH:
        raise UserError(f"{source}: a key of {key.count('.') + 1} parts; allowed: at most {MAX_DEPTH}")
    path, value = _resolve_key(key, merged), parse_yaml(text, source)
    if value == {}:
        raise UserError(f"{source}: no keys, so this changes nothing; to change one: --set {key}.NAME=VALUE")
    if re.fullmatch(r"factors\.\w+", path) and not isinstance(value, (list, dict)):
        value = [value]  # one level
    first, *inner = path.split(".")
    for part in reversed(inner):
        value = {part: value}
    return {first: value}


def _resolve_key(key: str, merged: dict[str, Any]) -> str:
    """Completes a bare name, which may be a factor or a field of a section: `epochs` is `base.epochs`."""
    head = key.split(".")[0]
    if head in StudyConfig.model_fields:
        return key
    if isinstance(merged["factors"], dict) and head in merged["factors"]:
        return f"factors.{key}"
    for section, model in SECTIONS.items():
        if head in model.model_fields and section != "start":  # its names, such as `cell`, are unclear by themselves
            return f"{section}.{key}"
    names = [*StudyConfig.model_fields, *TrialConfig.model_fields, *RunConfig.model_fields]
    raise UserError(f"--set {shorten(key, MAX_VALUE)}: unknown key; {allowed_names(head, names, KEYS)}")
