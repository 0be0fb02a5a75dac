"""Settings of a process that trains: threads, torch and Lightning, and where its output goes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from study.training.lightning_workarounds import disable_memory_fill, silence_lightning


def set_up_process(threads: int) -> None:
    """Applies the settings that every rank of a trial needs before it trains."""
    torch.set_num_threads(threads)
    disable_memory_fill()
    silence_lightning()


def free_device_memory() -> None:
    """Returns the memory of objects that are no longer used to the GPU, if this process uses one."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def redirect_output(log: Path) -> None:
    """Appends everything that this process prints from now on to a file."""
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
