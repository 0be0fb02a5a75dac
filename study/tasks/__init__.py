"""One LightningModule per task, and the optimizers and the process group that all tasks share."""

from __future__ import annotations

from study.config.schema import Task
from study.tasks.base import DivergedError, TrainingModule
from study.tasks.classification import Classification
from study.tasks.detection import Detection
from study.tasks.segmentation import Segmentation

__all__ = ["TASKS", "DivergedError", "TrainingModule"]

TASKS: dict[Task, type[TrainingModule]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
}
