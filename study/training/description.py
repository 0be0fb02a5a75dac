"""Describes a trial for its record: trial.yaml, environment.json, and the metrics and notes of result.json."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from study.models import count_norms
from study.norms.kernels.dispatch import kernel_kind
from study.plan.job import Job
from study.record.environment import describe_machine
from study.tasks.base import EVALUATIONS

NOTED_LINES = 20


def describe_trial(job: Job, network: nn.Module, norm_layers: int, accumulate: int) -> dict[str, Any]:
    """The content of trial.yaml: what is trained, and the command that repeats it."""
    trial = job.trial
    return {
        "trial_id": trial.trial_id,
        "replicate": trial.replicate,
        "study": job.study,
        "levels": trial.levels,
        "start": None if job.start is None else trial.waits_for or str(job.start),
        "config": trial.config.model_dump(mode="json"),
        "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch,
        "device_batch": trial.device_batch,
        "devices": len(job.devices),
        "accumulate": accumulate,
        "pool": list(trial.pool),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "norm_layers": norm_layers,
        "norm_census": count_norms(network),
        "seeds": trial.seeds,
        "command": job.command,
    }


def describe_trial_environment(job: Job) -> dict[str, Any]:
    """The content of environment.json: the run's environment, this machine where it is another one, and the devices.

    group: number of trials whose networks were computed as one, and the place of this one's; None for a trial alone.
    """
    names = [torch.cuda.get_device_name(device) if device.startswith("cuda") else device for device in job.devices]
    sync = job.trial.config.sync_statistics and "bn" in job.trial.pool
    pools = job.trial.config.pools.values()
    kernels = kernel_kind(torch.device(job.devices[0]).type, sync=sync, pools=pools)
    elsewhere = platform.node() != job.environment["host"]
    environment = {**job.environment, **(describe_machine() if elsewhere else {})}
    group = {"trials": len(job.group), "place": job.group.index(job.trial.key)} if job.group else None
    return {
        **environment, "device": ", ".join(names), "threads": job.threads, "norm_kernels": kernels, "group": group,
    }  # fmt: skip


def collect_metrics(
    last: dict[str, float | None], tested: dict[str, float | None], main_metric: str, *, diverged: bool
) -> dict[str, float | None]:
    """The metrics of result.json: those of the last epoch and of the test; all null for a diverged trial."""
    names = [f"{split}_{name}" for split in EVALUATIONS for name in ("score", main_metric, "loss")]
    metrics = {**dict.fromkeys([*names, "train_loss"]), **({} if diverged else {**last, **tested})}
    fit, validation = metrics.get("fit_score"), metrics.get("val_score")
    gap = fit - validation if fit is not None and validation is not None else None
    return {**metrics, "generalization_gap": gap}


def format_set_aside(lines: Sequence[str]) -> list[str]:
    """Notes about samples that were left out: the first `NOTED_LINES` of them, and how many more there are."""
    rest = len(lines) - NOTED_LINES
    return [f"set aside: {line}" for line in lines[:NOTED_LINES]] + ([f"set aside: {rest} more"] if rest > 0 else [])
