"""Refuses warm starts that cannot work, cell by cell, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from study.config.datasets import DATASETS
from study.config.schema import StudyConfig, TrialConfig
from study.norms.names import effective_pool, parse_norm
from study.plan.warm_start import OPTION_RULES, StartSource, find_replicate, find_source_config, find_source_levels


def check_start(study: StudyConfig, levels: Mapping[str, Any], config: TrialConfig) -> None:
    """Raises `ValueError` if a cell cannot start as its rule says."""
    _check_options(config)
    if config.start_rule == "scratch":
        return
    _check_rule(config)
    source = find_source_config(study, levels)
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
    start = find_source_levels(study, levels)
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
    replicate = find_replicate(study.start)
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
