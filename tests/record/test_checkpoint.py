"""Checkpoints: damage of every kind is found, set aside and named, and the one before is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from study.record.checkpoint import AtomicCheckpointIO, newest_checkpoint, rotate
from study.record.layout import TrialFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    """A trial with two checkpoints."""
    folder = TrialFolder(tmp_path)
    for epoch in (1, 2):
        rotate(folder)
        AtomicCheckpointIO().save_checkpoint({"epoch": epoch, "w": torch.randn(2000)}, folder.last_checkpoint)
    return folder


def test_the_last_is_taken_and_the_one_before_kept(folder: TrialFolder) -> None:
    assert newest_checkpoint(folder, pytest.fail) == folder.last_checkpoint
    assert torch.load(folder.last_checkpoint)["epoch"] == 2
    assert torch.load(folder.previous_checkpoint)["epoch"] == 1


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: flip(data, len(data) // 2),  # inside a tensor: it would load without complaint
        lambda data: flip(data, 100),
    ],
    ids=["empty", "half", "one byte short", "bit flipped in a tensor", "bit flipped in the head"],
)
def test_a_damaged_checkpoint_is_set_aside_named_and_the_one_before_taken(
    folder: TrialFolder, damage: Callable[[bytes], bytes]
) -> None:
    folder.last_checkpoint.write_bytes(damage(folder.last_checkpoint.read_bytes()))
    said: list[str] = []
    assert newest_checkpoint(folder, said.append) == folder.previous_checkpoint
    assert len(said) == 1
    assert "last.ckpt: damaged" in said[0]
    assert not folder.last_checkpoint.exists()
    assert len(list(folder.path.glob("last.ckpt.damaged-*"))) == 1


def test_without_a_whole_checkpoint_there_is_none(folder: TrialFolder) -> None:
    folder.last_checkpoint.write_bytes(b"")
    folder.previous_checkpoint.write_bytes(b"x")
    assert newest_checkpoint(folder, lambda message: None) is None
