"""What a process is handed to train one trial. Between the driver and training; imports neither, and no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from study.config.schema import RunConfig, TrackingConfig
from study.plan.trials import PlannedTrial


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a process needs to train one trial: plain values, so that it can be sent to any machine."""

    trial: PlannedTrial
    folder: Path
    study: str
    run: RunConfig
    tracking: TrackingConfig
    wandb_mode: Literal["online", "offline", "disabled"]
    environment: dict[str, Any]
    command: str
    start: Path | None = None  # the folder of the trial that it starts from, or a file of weights
    devices: tuple[str, ...] = ("cpu",)  # a rank each
    threads: int = 1
    place: str = ""  # the cluster's name of the job that it runs in

    def on(self, devices: tuple[str, ...], threads: int) -> Job:
        """The same job, placed."""
        return replace(self, devices=devices, threads=threads)
