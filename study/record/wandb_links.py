"""The folders of W&B runs: links to all of a study, and marks of what is on the server. Imports no W&B."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from study.record.layout import StudyFolder

MARK = ".synced"  # W&B's own mark beside a transaction log: `wandb sync` skips it
CONTINUED = "The server has the start of this history: `wandb sync` would upload it twice, the verb `sync` does not.\n"


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
    """Number of linked runs that are not, or not completely, on the server."""
    return sum(not any(mark.stat().st_size == 0 for mark in _marks(run)) for run in folder.wandb.glob("*run-*"))


def find_runs_below(path: Path) -> list[Path]:
    """The folders of all runs of a trial, or of the summary."""
    return [run for run in (path / "wandb").glob("*run-*") if not run.is_symlink()]


def was_uploaded(run: Path) -> bool:
    """Whether the server may have some of a run: it was online, or has been synced."""
    return run.name.startswith("run-") or any(_marks(run))


def mark_uploaded(log: Path) -> None:
    """Marks a transaction log whose run is completely on the server."""
    Path(f"{log}{MARK}").write_bytes(b"")


def mark_continued(log: Path) -> None:
    """Marks the log of an offline run whose first rows are on the server: `wandb sync` would add them again."""
    Path(f"{log}{MARK}").write_text(CONTINUED)


def _marks(run: Path) -> Iterable[Path]:
    return run.glob(f"*.wandb{MARK}")
