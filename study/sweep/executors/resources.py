"""Cores and devices of a machine, and how many trials fit on them at once. Imports torch only to count GPUs."""

from __future__ import annotations

import os
import shutil
import socket

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig, StudyConfig


def count_cores() -> int:
    """Returns the number of cores that this process may use, which a container or a job may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_devices(wanted: str) -> list[str]:
    """Returns the devices that `run.device` stands for on this machine: every visible GPU, or `["cpu"]`.

    In a cluster's job, $CUDA_VISIBLE_DEVICES limits them to its own. Raises `UserError` if there is no such device.
    """
    if wanted == "cpu" or (wanted == "auto" and shutil.which("nvidia-smi") is None):
        return ["cpu"]
    import torch

    count = torch.cuda.device_count()
    if not count and wanted == "cuda":
        raise UserError("run.device=cuda: no CUDA device is available; allowed: auto, cpu")
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def find_free_port() -> int:
    """Returns a port of this machine on which no program listens."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def uses_gpus(study: StudyConfig) -> bool:
    """Returns whether trials of the study run on GPUs: those of this machine, or of a cluster's jobs."""
    if study.launch.launcher in ("slurm", "ray"):
        return study.launch.gpus > 0
    return find_devices(study.run.device) != ["cpu"]


def count_places(run: RunConfig, devices: list[str], cores: int) -> int:
    """Returns how many trials run at once on these devices or cores. Raises `UserError` if not even one fits."""
    if devices == ["cpu"]:
        return max(1, cores // (run.threads * run.devices_per_trial))
    if run.devices_per_trial > len(devices):
        raise UserError(
            f"run.devices_per_trial={run.devices_per_trial}: allowed: 1 to {len(devices)}, the number of GPUs"
        )
    return len(devices) * run.trials_per_device // run.devices_per_trial


def find_job_devices(run: RunConfig, launch: LaunchConfig) -> list[str]:
    """Returns the devices of one node of a cluster's job. Without GPUs of its own, it may still see those of others."""
    return find_devices(run.device) if launch.gpus else ["cpu"]


def count_job_cores(launch: LaunchConfig) -> int:
    """Returns the number of cores of one node of a cluster's job; 1 for a fraction of one, which trials share."""
    return max(1, int(launch.cpus))


def share_of_node(run: RunConfig, launch: LaunchConfig) -> RunConfig:
    """Returns the settings of a trial's share of one node."""
    return run.model_copy(update={"devices_per_trial": run.devices_per_trial // launch.nodes})


def check_job_resources(launch: LaunchConfig, run: RunConfig) -> None:
    """Raises `UserError` if a cluster's job is too small for one trial."""
    if run.devices_per_trial % launch.nodes:
        raise UserError(
            f"launch.nodes={launch.nodes}: must divide run.devices_per_trial={run.devices_per_trial}, the number of "
            "devices of a trial on all nodes"
        )
    run = share_of_node(run, launch)
    needed = run.devices_per_trial
    if launch.gpus and run.device != "cpu":
        if needed > max(1, launch.gpus):
            raise UserError(f"launch.gpus={launch.gpus:g}: a trial needs run.devices_per_trial={needed}")
    elif run.device == "cuda":
        raise UserError("run.device=cuda: jobs have no GPU; set launch.gpus")
    elif needed * run.threads > count_job_cores(launch):
        raise UserError(
            f"launch.cpus={launch.cpus:g}: a trial needs {needed * run.threads}: run.devices_per_trial x run.threads"
        )


def share_threads(run: RunConfig, places: int, cores: int) -> int:
    """Returns the number of threads per process if `places` trials share the cores."""
    return min(run.threads, max(1, cores // (places * run.devices_per_trial)))
