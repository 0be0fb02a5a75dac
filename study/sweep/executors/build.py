"""Builds the executor of a study's launcher.

A launcher is a module of this package, named in `Launcher` of study/config/schema.py, with a function `build_executor`
of the signature of the one below.
"""

from __future__ import annotations

from importlib import import_module

from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.record.layout import StudyFolder
from study.sweep.executors.base import Executor
from study.sweep.executors.resources import uses_gpus


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None = None) -> Executor:
    """Builds the executor that `launch.launcher` names. Imports only that one: Ray and submitit are optional.

    `workers` limits how many trials run at once on this machine. Raises `UserError` if the executor is not available,
    or cannot give a trial what it needs.
    """
    launcher = study.launch.launcher
    if launcher != "local" and workers is not None:
        raise UserError("--workers: only for the local launcher; launch.jobs limits Slurm, the cluster limits Ray")
    if not uses_gpus(study) and "float16" in study.list_values("precision"):  # PyTorch would silently use bfloat16
        raise UserError("base.precision: 'float16': needs a CUDA device; allowed here: float32, bfloat16")
    executor: Executor = import_module(f"study.sweep.executors.{launcher}").build_executor(study, folder, workers)
    return executor
