"""Refuses cells that cannot be trained, before anything is. Warm starts are checked in `warm_start_checks`."""

from __future__ import annotations

from study.config.datasets import DATASETS
from study.config.errors import allowed_names
from study.config.schema import HEAD_ROLES, HEADS, NO_NORM, SMALL_DEPTHS, RunConfig, TrialConfig


def check_cell(config: TrialConfig, run: RunConfig) -> None:
    """Raises `ValueError` if a cell cannot be trained; the message names the setting and what is allowed."""
    _check_pools(config)
    _check_data(config)
    _check_head(config)
    _check_backbone(config)
    _check_unused_settings(config)
    _check_optimization(config)
    _check_batches(config)
    _check_devices(config, run)


def _check_pools(config: TrialConfig) -> None:
    """A record has one pool, so all layers that choose must choose from the same."""
    pools = {role: pool for role, pool in config.pools.items() if len(pool) > 1}
    if len(set(pools.values())) > 1:
        listed = ", ".join(f"{role} {'+'.join(pool)}" for role, pool in pools.items())
        raise ValueError(f"norms that choose from different pools ({listed}); allowed: one pool in a trial")


def _check_data(config: TrialConfig) -> None:
    facts = DATASETS[config.dataset]
    if config.augmentation not in facts.augmentations:
        raise ValueError(
            f"augmentation={config.augmentation} does not fit {config.dataset}; "
            f"{allowed_names(config.augmentation, facts.augmentations)}"
        )
    if config.task not in facts.tasks:
        fitting = [name for name, known in DATASETS.items() if config.task in known.tasks]
        raise ValueError(f"{config.dataset} has no labels for task={config.task}; allowed: {', '.join(fitting)}")
    if config.split_sizes[1] < 1:
        raise ValueError(f"validation_fraction={config.validation_fraction}: no image is left for validation")


def _check_head(config: TrialConfig) -> None:
    if config.head is not None and config.head not in HEADS[config.task]:
        heads = HEADS[config.task] or ("none",)
        raise ValueError(f"head={config.head} does not fit task={config.task}; allowed: {', '.join(heads)}")
    if config.task == "detection" and config.sync_statistics:
        raise ValueError("sync_statistics: images and regions differ in size between devices; allowed: false")
    if config.task == "detection" and config.dropout:
        raise ValueError(f"dropout={config.dropout}: a detector has no dropout layer; allowed: 0")


def _check_backbone(config: TrialConfig) -> None:
    if config.depth in (18, 34) and config.width != 1:
        raise ValueError(f"width={config.width}: allowed for depth {config.depth}: 1.0")
    strides = (1, 2, 4) if config.depth in SMALL_DEPTHS else (8, 16)
    if config.output_stride is not None and (config.task != "segmentation" or config.output_stride not in strides):
        raise ValueError(
            f"output_stride={config.output_stride}: allowed for segmentation at depth {config.depth}: "
            f"{', '.join(map(str, strides))}"
        )
    stages = 0 if config.task == "classification" else 4 if config.depth in SMALL_DEPTHS else 5
    if config.freeze_stages > stages:
        raise ValueError(
            f"freeze_stages={config.freeze_stages}: allowed for {config.task} at depth {config.depth}: at most {stages}"
        )


def _check_unused_settings(config: TrialConfig) -> None:
    """A setting of something that the trial does not have would change nothing but the trial's id."""
    unused = {f"{role}_norm" for roles in HEAD_ROLES.values() for role in roles
              if config.norms.get(role, NO_NORM) == NO_NORM}  # fmt: skip
    if config.task != "segmentation":
        unused.add("deep_supervision")
    if config.task != "detection":
        unused.add("box_head")
    if config.augmentation != "random_resized_crop":
        unused |= {"color", "mild_epochs"}
    for name in sorted(unused):
        value, default = getattr(config, name), TrialConfig.model_fields[name].default
        if value not in (default, NO_NORM):
            raise ValueError(
                f"{name}={value}: not used with task={config.task}, head={config.task_head} and "
                f"augmentation={config.augmentation}; allowed: {default}"
            )


def _check_optimization(config: TrialConfig) -> None:
    if config.epochs < 1 and config.start_rule == "scratch":
        raise ValueError("epochs=0: allowed for a trial that starts from another one")
    if config.solver == "nesterov" and config.momentum == 0:
        raise ValueError("momentum=0.0: solver nesterov needs a momentum above 0")
    if config.precision == "float16" and config.logit_gradient_clip is not None:
        raise ValueError("logit_gradient_clip: not allowed at precision=float16, whose gradients are scaled")


def _check_batches(config: TrialConfig) -> None:
    if config.fixed_gradient_batch not in (None, config.gradient_batch):
        raise ValueError(
            f"fixed_gradient_batch={config.fixed_gradient_batch} is not a multiple of batch_size {config.batch_size}"
        )
    if config.steps_per_epoch < 1:
        raise ValueError(
            f"gradient batch {config.gradient_batch} (chunks {config.chunks} x batch_size {config.batch_size}) exceeds "
            f"the {config.split_sizes[0]} training samples of {config.dataset}"
        )


def _check_devices(config: TrialConfig, run: RunConfig) -> None:
    if config.chunks % (run.devices_per_trial * run.accumulate):
        shares = {"devices_per_trial": run.devices_per_trial, "accumulate": run.accumulate}
        product = " x ".join(f"run.{name}={count}" for name, count in shares.items() if count > 1)
        raise ValueError(f"{product}: does not divide its {config.chunks} chunks")
    if config.sync_statistics and run.accumulate > 1:
        raise ValueError(
            f"sync_statistics: run.accumulate={run.accumulate} would compute statistics over a part of the gradient "
            "batch; allowed: 1"
        )
