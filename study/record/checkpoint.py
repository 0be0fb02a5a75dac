"""Checkpoints: written atomically, the previous one kept, and checked for damage before they are used."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from study.config.errors import escape_controls
from study.record.io import quarantine, write_bytes
from study.record.layout import TrialFolder


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getvalue())


def rotate_checkpoints(folder: TrialFolder) -> None:
    """Renames the last checkpoint to the previous one, before a new one is written."""
    if folder.last_checkpoint.exists():
        os.replace(folder.last_checkpoint, folder.previous_checkpoint)


def find_newest_checkpoint(folder: TrialFolder, key: str, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint of the trial, or None. Another one is renamed and reported to `warn`."""
    for path in (folder.last_checkpoint, folder.previous_checkpoint):
        if not path.exists():
            continue
        problem = find_damage(path, key)
        if problem is None:
            return path
        warn(f"{path}: damaged ({problem}), set aside as {quarantine(path).name}")
    return None


def read_step(checkpoint: Path) -> int:
    """The number of optimizer steps taken before a checkpoint."""
    return int(torch.load(checkpoint, map_location="meta", weights_only=True)["global_step"])


def find_damage(path: Path, key: str = "") -> str | None:
    """The damage of a checkpoint in a few words; None where there is none.

    torch loads a tensor with a flipped bit without an error, so the checksums of the archive are compared first.

    key: of the trial that the checkpoint is to be of. Networks of one shape load each other's checkpoints, and would
    end with each other's numbers. A checkpoint of a version that did not name its trial counts as the trial's own.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            return f"checksum of {bad}"
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
        owner = checkpoint.get("callbacks", {}).get("Recorder", {}).get("trial", key) if key else key
    except Exception as error:  # a damaged file raises almost anything: EOFError, OSError, UnicodeDecodeError, ...
        return type(error).__name__
    return None if owner == key else f"that of {escape_controls(str(owner))}"
