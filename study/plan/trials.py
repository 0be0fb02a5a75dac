"""The plan: factors x replicates -> the table of trials, with the numbers that follow from each cell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from study.config.datasets import DATASETS, compute_split_sizes
from study.config.errors import UserError, allowed_names
from study.config.schema import HEAD_ROLES, HEADS, NO_NORM, SMALL_DEPTHS, StudyConfig, TrialConfig
from study.config.seeds import derive_seeds
from study.norms.names import effective_pool
from study.plan.warm_start import StartSource, check_split, check_start, source_outside


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One training run of the plan: a cell (`levels` of every factor) at one replicate.

    device_batch: samples in one device's memory at a time. All of the gradient batch, or its part where the run takes
    it on several devices or in several parts. A detector takes B at a time: what its heads see of a sample are regions,
    of which no two samples have the same number.
    """

    trial_id: str
    replicate: int
    levels: dict[str, Any]
    config: TrialConfig
    device_batch: int
    source: StartSource | None = None  # what it starts from

    @property
    def waits_for(self) -> str | None:
        """The key of the trial of this study that it starts from."""
        return f"{self.source.cell}-r{self.replicate}" if self.source and self.source.cell else None

    @property
    def key(self) -> str:
        """Names the trial within a study, and its W&B run: the cell and the replicate."""
        return f"{self.trial_id}-r{self.replicate}"

    @property
    def statistics_batch(self) -> int:
        """Samples that batch statistics are taken over: B, or G * B where they are synchronized."""
        return self.config.statistics_batch

    @property
    def gradient_batch(self) -> int:
        """G * B: samples that a gradient is averaged over."""
        return self.config.gradient_batch

    @property
    def pool(self) -> tuple[str, ...]:
        """The normalizers that a layer of this trial chooses from; without bn over one sample."""
        pools = list(_pools(self.config).values())
        return next((pool for pool in pools if len(pool) > 1), pools[0])

    @property
    def split(self) -> tuple[int, int, int]:
        """Samples in the training, validation and test split."""
        return compute_split_sizes(self.config.dataset, self.config.validation_fraction, self.config.train_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the incomplete last batch is dropped, so that every batch has G chunks of B."""
        return self.config.epoch_steps or self.split[0] // self.gradient_batch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole trial."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def cost(self) -> float:
        """Relative duration, to forecast from: small networks cost by their calls, not by their size."""
        return self.steps * self.config.depth * max(1.0, self.gradient_batch / 64)

    @property
    def seeds(self) -> dict[str, int]:
        """A seed a role: init, data, split."""
        return derive_seeds(self.replicate)


def plan_trials(study: StudyConfig) -> list[PlannedTrial]:
    """Every trial of a grid study. Replicate by replicate, so that an unfinished study covers all its cells.

    Raises `UserError` for a cell that cannot run.
    """
    if study.search is not None:
        raise UserError(f"{study.name}: a search has no fixed plan; its trials are suggested as it goes")
    first = [plan_trial(study, cell, 0) for cell in plan_cells(study)]  # what is checked holds for every replicate
    _check_sources(study, first)
    return [replace(trial, replicate=replicate) for replicate in range(study.replicates) for trial in first]


def plan_cells(study: StudyConfig) -> list[dict[str, Any]]:
    """The cells of a grid study, each a level of every factor: the union of its blocks, each a full cross."""
    cells: dict[str, dict[str, Any]] = {}
    for block in study.blocks or [list(study.factors)]:
        levels = [study.factors[factor] if factor in block else [study.base_level(factor)] for factor in study.factors]
        for combination in itertools.product(*levels):
            cells.setdefault(repr(combination), dict(zip(study.factors, combination, strict=True)))
    return list(cells.values())


def _check_sources(study: StudyConfig, trials: Sequence[PlannedTrial]) -> None:
    """Raises `UserError` where the cell that a trial starts from is not planned itself."""
    planned = {trial.trial_id for trial in trials}
    for trial in trials:
        if trial.source and trial.source.cell and trial.source.cell not in planned:
            levels = study.source_levels(trial.levels) or {}
            lacking = {factor: level for factor, level in levels.items() if level not in study.factors.get(factor, [])}
            cell = ", ".join(f"{factor}={level}" for factor, level in (lacking or levels).items())
            raise UserError(
                f"{study.name}: cell {_say(trial.levels)}: it starts from a cell that is not planned: "
                f"{cell}{' is no level' if lacking else ''}; add it, or name another in start.cell"
            )


def plan_corners(study: StudyConfig) -> list[PlannedTrial]:
    """The trials at the ends of a search's space: what can run there is taken to run between.

    Raises `UserError` for a cell that cannot run.
    """
    ends = {
        factor: levels if isinstance(levels, list) else [levels.low, levels.high]
        for factor, levels in study.factors.items()
    }
    return [plan_trial(study, dict(zip(ends, cell, strict=True)), 0) for cell in itertools.product(*ends.values())]


def plan_trial(study: StudyConfig, levels: Mapping[str, Any], replicate: int) -> PlannedTrial:
    """The trial of one cell. Raises `UserError` where the cell cannot run."""
    cell = _say(levels)
    try:
        config = study.cell(levels)
    except ValidationError as error:
        raise UserError(f"{study.name}: cell {cell}: {error.errors()[0]['msg']}") from None
    run = study.run
    parts = config.chunks if config.task == "detection" else run.devices_per_trial * run.accumulate
    trial = PlannedTrial(
        trial_id=study.cell_id(config, levels), replicate=replicate, levels=dict(levels), config=config,
        device_batch=config.gradient_batch // parts, source=_find_start_source(study, levels, config),
    )  # fmt: skip
    try:
        _ = trial.pool
    except ValueError as error:
        raise UserError(f"{study.name}: cell {cell}: {error}") from None
    facts = DATASETS[config.dataset]
    if config.augmentation not in facts.augmentations:
        raise UserError(
            f"{study.name}: cell {cell}: augmentation={config.augmentation} does not fit {config.dataset}; "
            f"{allowed_names(config.augmentation, facts.augmentations)}"
        )
    _check_task(config, f"{study.name}: cell {cell}")
    source = None if config.start_rule == "scratch" else study.source_config(levels)
    check_start(config, source, f"{study.name}: cell {cell}")
    check_split(config, source, study.start, study.replicates, f"{study.name}: cell {cell}")
    if config.epochs < 1 and config.start_rule == "scratch":
        raise UserError(f"{study.name}: cell {cell}: epochs=0: allowed for a trial that starts from another one")
    if config.depth in (18, 34) and config.width != 1:
        raise UserError(f"{study.name}: cell {cell}: width={config.width}: allowed for depth {config.depth}: 1.0")
    if config.fixed_gradient_batch not in (None, config.gradient_batch):
        raise UserError(
            f"{study.name}: cell {cell}: fixed_gradient_batch={config.fixed_gradient_batch} is no multiple of "
            f"batch_size {config.batch_size}"
        )
    if config.chunks % (run.devices_per_trial * run.accumulate):
        shares = {"devices_per_trial": run.devices_per_trial, "accumulate": run.accumulate}
        product = " x ".join(f"run.{key}={count}" for key, count in shares.items() if count > 1)
        raise UserError(f"{study.name}: {product}: does not divide the {config.chunks} chunks of cell {cell}")
    if config.sync_statistics and run.accumulate > 1:
        raise UserError(
            f"{study.name}: cell {cell}: sync_statistics: run.accumulate={run.accumulate} would see a part of the "
            "gradient batch at a time; allowed: 1"
        )
    if config.precision == "float16" and config.logit_gradient_clip is not None:
        raise UserError(
            f"{study.name}: cell {cell}: logit_gradient_clip: would clip scaled gradients at precision=float16"
        )
    if config.solver == "nesterov" and config.momentum == 0:
        raise UserError(f"{study.name}: cell {cell}: momentum=0.0: solver nesterov needs a momentum above 0")
    if trial.split[1] < 1:
        raise UserError(
            f"{study.name}: cell {cell}: validation_fraction={config.validation_fraction}: no image is left for it"
        )
    if trial.steps_per_epoch < 1:
        raise UserError(
            f"{study.name}: cell {cell}: gradient batch {trial.gradient_batch} (chunks {config.chunks} x batch_size "
            f"{config.batch_size}) exceeds the {trial.split[0]} training samples of {config.dataset}"
        )
    return trial


def _find_start_source(study: StudyConfig, levels: Mapping[str, Any], config: TrialConfig) -> StartSource | None:
    if config.start_rule == "scratch":
        return None
    cell = study.source_levels(levels)
    return source_outside(study.start) if cell is None else StartSource(cell=study.cell_id(study.cell(cell), cell))


def _say(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items()) or "the base"


def _pools(config: TrialConfig) -> dict[str, tuple[str, ...]]:
    """The pool of each role that has norm layers."""
    return {role: effective_pool(norm, config.statistics_batch) for role, norm in config.norms.items()
            if norm != NO_NORM}  # fmt: skip


def _check_task(config: TrialConfig, where: str) -> None:
    """Raises `UserError` where data set, head, backbone and norms do not fit the task or each other."""
    facts = DATASETS[config.dataset]
    if config.task not in facts.tasks:
        fitting = [name for name, known in DATASETS.items() if config.task in known.tasks]
        raise UserError(
            f"{where}: {config.dataset} has no labels for task={config.task}; allowed: {', '.join(fitting)}"
        )
    if config.head is not None and config.head not in HEADS[config.task]:
        heads = HEADS[config.task] or ("none",)
        raise UserError(f"{where}: head={config.head} does not fit task={config.task}; allowed: {', '.join(heads)}")
    _check_parts(config, where)
    strides = (1, 2, 4) if config.depth in SMALL_DEPTHS else (8, 16)
    if config.output_stride is not None and (config.task != "segmentation" or config.output_stride not in strides):
        raise UserError(
            f"{where}: output_stride={config.output_stride}: of depth {config.depth} allowed for segmentation: "
            f"{', '.join(map(str, strides))}"
        )
    choices = {role: pool for role, pool in _pools(config).items() if len(pool) > 1}
    if len(set(choices.values())) > 1:  # a record has one pool
        pools = ", ".join(f"{role} {'+'.join(pool)}" for role, pool in choices.items())
        raise UserError(f"{where}: norms that choose from different pools ({pools}); allowed: one pool in a trial")
    stages = 0 if config.task == "classification" else 4 if config.depth in SMALL_DEPTHS else 5
    if config.freeze_stages > stages:
        raise UserError(
            f"{where}: freeze_stages={config.freeze_stages}: of depth {config.depth} allowed for {config.task}: "
            f"at most {stages}"
        )
    if config.task == "detection" and config.sync_statistics:
        raise UserError(f"{where}: sync_statistics: images and regions differ in size between devices; allowed: false")
    if config.task == "detection" and config.dropout:
        raise UserError(f"{where}: dropout={config.dropout}: detection has no layer for it; allowed: 0")


def _check_parts(config: TrialConfig, where: str) -> None:
    """Raises `UserError` where something is set of what the trial does not have: it would change its id alone."""
    lacking = {f"{role}_norm" for roles in HEAD_ROLES.values() for role in roles
               if config.norms.get(role, NO_NORM) == NO_NORM}  # fmt: skip
    if config.task != "segmentation":
        lacking.add("deep_supervision")
    if config.task != "detection":
        lacking.add("box_head")
    if config.augmentation != "random_resized_crop":
        lacking |= {"color", "mild_epochs"}
    for name in sorted(lacking):
        value, default = getattr(config, name), TrialConfig.model_fields[name].default
        if value not in (default, NO_NORM):
            raise UserError(
                f"{where}: {name}={value}: task={config.task}, head={config.task_head} and "
                f"augmentation={config.augmentation} have no use for it; allowed: {default}"
            )
