"""What the machine that trials run on has, and how many fit on it at once. Imports torch only to count GPUs."""

from __future__ import annotations

import os
import shutil

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig


def count_cores() -> int:
    """Cores that this process may use, which a container or a job may have narrowed."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_devices(wanted: str) -> list[str]:
    """The devices that `run.device` means here: every visible GPU, or the CPU. Raises `UserError` where there is none.

    A cluster names the GPUs of a job in $CUDA_VISIBLE_DEVICES.
    """
    if wanted == "cpu" or (wanted == "auto" and shutil.which("nvidia-smi") is None):
        return ["cpu"]
    import torch

    count = torch.cuda.device_count()
    if not count and wanted == "cuda":
        raise UserError("run.device=cuda: no CUDA device is available; allowed: auto, cpu")
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def count_places(run: RunConfig, devices: list[str], cores: int) -> int:
    """Trials at once: one for every few cores, or so many a GPU. Raises `UserError` where not even one fits."""
    if devices == ["cpu"]:
        return max(1, cores // (run.threads * run.devices_per_trial))
    if run.devices_per_trial > len(devices):
        raise UserError(
            f"run.devices_per_trial={run.devices_per_trial}: allowed: 1 to {len(devices)}, the GPUs there are"
        )
    return len(devices) * run.trials_per_device // run.devices_per_trial


def check_room(launch: LaunchConfig, run: RunConfig) -> None:
    """Raises `UserError` where a job of a cluster would have no room for one trial."""
    needed = run.devices_per_trial
    if launch.gpus and run.device != "cpu":
        if needed > max(1, launch.gpus):
            raise UserError(f"launch.gpus={launch.gpus:g}: a trial takes run.devices_per_trial={needed}")
    elif run.device == "cuda":
        raise UserError("run.device=cuda: a job has no GPU; launch.gpus gives it some")
    elif needed * run.threads > launch.cpus:
        raise UserError(
            f"launch.cpus={launch.cpus}: a trial takes {needed * run.threads}: run.devices_per_trial x run.threads"
        )


def share_threads(run: RunConfig, places: int, cores: int) -> int:
    """Threads of one process, where so many trials run at once."""
    return min(run.threads, max(1, cores // (places * run.devices_per_trial)))
