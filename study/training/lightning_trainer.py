"""Builds the Lightning Trainer of a trial: one device, no output, no files of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch

from study.config.schema import TrialConfig
from study.training.lightning_workarounds import trainer_arguments

PRECISION: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def build_trainer(config: TrialConfig, device: torch.device, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Returns the Trainer of one rank, for a single device. The module exchanges gradients (study/tasks/base.py)."""
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=PRECISION[config.precision],
        max_epochs=config.epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,  # evaluation re-estimates batch statistics in buffers that training uses afterwards
        deterministic="warn",
        **trainer_arguments(),
    )
