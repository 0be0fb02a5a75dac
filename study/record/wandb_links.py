"""One folder with links to all W&B runs of a study, to browse and to sync."""

from __future__ import annotations

import os
from itertools import chain

from study.record.layout import StudyFolder


def link_wandb_runs(folder: StudyFolder) -> None:
    """Updates the links. A resumed trial has a new run instead of its old one."""
    folder.wandb.mkdir(exist_ok=True)
    for link in folder.wandb.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    for run in chain(folder.path.glob("trials/*/r*/wandb/*run-*"), folder.report.glob("wandb/*run-*")):
        link = folder.wandb / run.name
        if not run.is_symlink() and not link.is_symlink():
            link.symlink_to(os.path.relpath(run, folder.wandb), target_is_directory=True)


def count_unsynced_runs(folder: StudyFolder) -> int:
    """Number of linked offline runs that `wandb sync` has not marked as synced."""
    return sum(not any(run.glob("*.wandb.synced")) for run in folder.wandb.glob("offline-run-*"))
