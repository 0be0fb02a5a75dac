"""Checkpoints: damage of every kind is found and reported, and the previous checkpoint is used instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from study.record.checkpoint import find_newest_checkpoint, rotate_checkpoints, write_checkpoint
from study.record.layout import TrialFolder

KEY = "sn-1234-r0"


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    """A trial with two checkpoints."""
    folder = TrialFolder(tmp_path)
    for epoch in (1, 2):
        rotate_checkpoints(folder)
        write_checkpoint(folder.last_checkpoint, {"epoch": epoch, "w": torch.randn(2000)})
    return folder


def test_the_last_checkpoint_is_used_and_the_previous_one_kept(folder: TrialFolder) -> None:
    assert find_newest_checkpoint(folder, KEY, pytest.fail) == folder.last_checkpoint
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
        lambda data: flip(data, len(data) // 2),  # inside a tensor: torch would load it without an error
        lambda data: flip(data, 100),
    ],
    ids=["empty", "half", "one byte short", "bit flipped in a tensor", "bit flipped in the head"],
)
def test_a_damaged_checkpoint_is_renamed_and_reported_and_the_previous_one_used(
    folder: TrialFolder, damage: Callable[[bytes], bytes]
) -> None:
    folder.last_checkpoint.write_bytes(damage(folder.last_checkpoint.read_bytes()))
    warnings: list[str] = []
    assert find_newest_checkpoint(folder, KEY, warnings.append) == folder.previous_checkpoint
    assert len(warnings) == 1
    assert "last.ckpt: damaged" in warnings[0]
    assert not folder.last_checkpoint.exists()
    assert len(list(folder.path.glob("last.ckpt.damaged-*"))) == 1


def test_without_an_undamaged_checkpoint_there_is_none(folder: TrialFolder) -> None:
    folder.last_checkpoint.write_bytes(b"")
    folder.previous_checkpoint.write_bytes(b"x")
    assert find_newest_checkpoint(folder, KEY, lambda message: None) is None


def test_the_checkpoint_of_another_trial_is_set_aside(folder: TrialFolder) -> None:
    for path, key in ((folder.last_checkpoint, "sn-1234-r1"), (folder.previous_checkpoint, KEY)):
        write_checkpoint(path, {"callbacks": {"Recorder": {"trial": key}}})
    warnings: list[str] = []
    assert find_newest_checkpoint(folder, KEY, warnings.append) == folder.previous_checkpoint
    assert "last.ckpt: damaged (that of sn-1234-r1), set aside" in warnings[0]


def test_a_file_of_torch_that_is_no_checkpoint_is_damaged(folder: TrialFolder) -> None:
    torch.save([1], folder.last_checkpoint)
    assert find_newest_checkpoint(folder, KEY, lambda message: None) == folder.previous_checkpoint
