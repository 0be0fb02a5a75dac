"""What a trial starts from: where it lies, whether it is fit to start from, and whether it fits. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from study.config.datasets import DATASETS, compute_split_sizes
from study.config.errors import UserError
from study.config.schema import START_OPTIONS, StartConfig, StudyConfig, TrialConfig
from study.config.yaml_input import read_yaml
from study.norms.names import effective_pool, parse_norm
from study.record.layout import TrialFolder


@dataclass(frozen=True, kw_only=True)
class StartSource:
    """What the trials of a cell start from: the trials of another cell of their study, or what lies at a path.

    path: a file of weights, a trial's folder, or the folder of a cell with one of every replicate.
    """

    cell: str = ""
    path: str = ""
    by_replicate: bool = True

    def locate(self, replicate: int) -> Path:
        """The file, or the folder of the trial, where it does not lie in the study itself."""
        return Path(self.path, f"r{replicate}") if self.by_replicate else Path(self.path)


def source_outside(start: StartConfig) -> StartSource:
    """What the start section names by a path."""
    if start.checkpoint is not None:
        return StartSource(path=start.checkpoint, by_replicate=False)
    return StartSource(path=str(start.trial), by_replicate=start.pinned is None)


def resolve_start(study: StudyConfig, where: str) -> StudyConfig:
    """The study, with what its start section names by a path looked up.

    Raises `UserError` where that does not exist, is unfinished or is damaged.
    """
    start = study.start
    if start.checkpoint is not None:
        file = Path(start.checkpoint)
        source: str | dict[str, object] = _digest(file, f"{where}: start.checkpoint={file}")
    elif start.trial is not None:
        outside = source_outside(start)
        folders = (TrialFolder(outside.locate(replicate)) for replicate in range(study.replicates))
        source, *_ = [_science(folder, f"{where}: start.trial={start.trial}") for folder in folders]
    else:
        return study
    return study.model_copy(update={"start": start.model_copy(update={"source": source})})


def _digest(file: Path, where: str) -> str:
    try:
        return f"file-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None


def _science(folder: TrialFolder, where: str) -> dict[str, object]:
    """What a finished trial was trained with, as its id takes it."""
    problem = find_problem(folder)
    if problem is not None:
        raise UserError(f"{where}: {folder.path} {problem}")
    try:
        config = read_yaml(folder.trial)["config"]
        return TrialConfig(**config).identity_fields()
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{where}: {folder.trial} describes no trial of this version") from None


def find_problem(folder: TrialFolder) -> str | None:
    """Why nothing can start from a trial; None where it can."""
    if not folder.path.is_dir():
        return "does not exist; expected the folder of a trial: runs/STUDY/trials/ID, or .../ID/r0"
    result, damaged = folder.check()
    if damaged:
        return f"is damaged: {', '.join(damaged)}"
    if result is None:
        return f"is unfinished: {folder.status()[0]}"
    if result["status"] != "done":
        return f"has no weights to start from: {result['status']}"
    return None if folder.last_checkpoint.exists() else f"has lost its {folder.last_checkpoint.name}"


def check_start(config: TrialConfig, source: TrialConfig | None, where: str) -> None:
    """Raises `UserError` where a trial cannot start from one of `source` by its rule; None is a file of weights."""
    rule = config.start_rule
    for option, rules in START_OPTIONS.items():
        if getattr(config, option) and rule not in rules:
            raise UserError(f"{where}: {option}: of start_rule={' or '.join(rules)}; here it is {rule}")
    if rule == "scratch":
        return
    spec, pool = parse_norm(config.norm), effective_pool(config.norm, config.statistics_batch)
    if config.start_epoch and (config.start_fresh or config.start_epoch >= config.epochs):
        raise UserError(
            f"{where}: start_epoch={config.start_epoch}: weights that learn until then need start_fresh=False and more "
            f"epochs than that; here are {config.epochs}"
        )
    if config.start_thaw and (spec.kind != "ssn" or (rule == "frozen" and not config.start_epoch)):
        raise UserError(f"{where}: start_thaw: of a norm ssn whose weights then learn; here {config.norm}, {rule}")
    controls = (None, "tied", "shared", "stage") if rule == "frozen" else (None,)
    if rule != "fine_tune" and not (spec.is_switch and spec.control in controls and len(pool) > 1):
        raise UserError(f"{where}: start_rule={rule}: norm={config.norm} has no choice of each layer; allowed: sn, ssn")
    if source is None:
        if rule == "transplant":
            raise UserError(f"{where}: start_rule=transplant: takes what layers chose from a trial, not from a file")
        return
    theirs = effective_pool(source.norm, source.statistics_batch)
    if theirs != pool:
        raise UserError(f"{where}: its pool is {' '.join(pool)}; that of the trial it starts from {' '.join(theirs)}")
    if rule == "transplant":
        if not parse_norm(source.norm).is_switch:
            raise UserError(f"{where}: start_rule=transplant: norm={source.norm} of the start trial has no choices")
        return
    for name in ("depth", "width", "norm"):
        if getattr(source, name) != getattr(config, name):
            raise UserError(
                f"{where}: {name}={getattr(config, name)} does not fit the trial it starts from, "
                f"{name}={getattr(source, name)}; only start_rule=transplant takes another"
            )
    channels = [DATASETS[name].channels for name in (config.dataset, source.dataset)]
    if channels[0] != channels[1]:
        raise UserError(
            f"{where}: images of {config.dataset} have {channels[0]} channels; those of {source.dataset}, which the "
            f"trial it starts from has seen, {channels[1]}"
        )


def check_split(
    config: TrialConfig, source: TrialConfig | None, start: StartConfig, replicates: int, where: str
) -> None:
    """Raises `UserError` where a network would be validated on images that it was trained on before its start."""
    only_choices = config.start_fresh or config.start_rule == "transplant"
    if source is None or only_choices or source.dataset != config.dataset:
        return
    if start.pinned is not None and (replicates > 1 or start.pinned > 0):
        raise UserError(
            f"{where}: start.trial={start.trial}: replicates draw splits of their own, and others would be validated "
            f"on what r{start.pinned} was trained on; allowed: the folder without r{start.pinned}"
        )
    held_out = [
        compute_split_sizes(each.dataset, each.validation_fraction, each.train_samples)[1] for each in (config, source)
    ]
    if held_out[0] > held_out[1]:
        raise UserError(
            f"{where}: validation_fraction={config.validation_fraction}: more than the {source.validation_fraction} "
            "that the trial it starts from has held out"
        )
