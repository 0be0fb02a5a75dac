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
        problem = find_damage(path) or _find_stranger(path, key)
        if problem is None:
            return path
        warn(f"{path}: damaged ({problem}), set aside as {quarantine(path).name}")
    return None


def read_step(checkpoint: Path) -> int:
    """The number of optimizer steps taken before a checkpoint."""
    return int(torch.load(checkpoint, map_location="meta", weights_only=True)["global_step"])


def find_damage(path: Path) -> str | None:
    """The damage of a checkpoint in a word or two; None where there is none.

    torch loads a tensor with a flipped bit without an error, so the checksums of the archive are compared first.
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


def _find_stranger(path: Path, key: str) -> str | None:
    """The trial whose checkpoint was copied here; None if it is this one's, or of a version that did not name it.

    Trials of networks of one shape can load each other's, and would end with each other's numbers.
    """
    checkpoint = torch.load(path, map_location="meta", weights_only=True)
    owner = checkpoint.get("callbacks", {}).get("Recorder", {}).get("trial", key)
    return None if owner == key else f"that of {escape_controls(str(owner))}"
