"""Checkpoints that survive: written by rename, the one before kept, verified before they are trusted."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from study.record.io import quarantine, write_bytes
from study.record.layout import TrialFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own way leaves half a file where $TMPDIR is another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())


def rotate(folder: TrialFolder) -> None:
    """Makes room for a new last checkpoint; the present one becomes the one before."""
    if folder.last_checkpoint.exists():
        os.replace(folder.last_checkpoint, folder.previous_checkpoint)


def newest_checkpoint(folder: TrialFolder, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, or None. A damaged one is set aside and named to `warn`."""
    for path in (folder.last_checkpoint, folder.previous_checkpoint):
        if not path.exists():
            continue
        problem = find_damage(path)
        if problem is None:
            return path
        warn(f"{path}: damaged ({problem}), set aside as {quarantine(path).name}")
    return None


def step_of(checkpoint: Path) -> int:
    """The steps that were taken before it."""
    return int(torch.load(checkpoint, map_location="meta", weights_only=True)["global_step"])


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None.

    A flipped bit inside a tensor loads without complaint, so the checksums of the archive are compared first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"checksum of {bad}"
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything: EOFError, OSError, UnicodeDecodeError, ...
        return type(error).__name__
    return None
