"""Each workaround of Lightning works, and is still needed: a test named `..._still_...` fails when it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torchmetrics.detection import MeanAveragePrecision

from study.record.layout import TrialFolder
from study.training.lightning_workarounds import (
    AtomicCheckpointIO,
    KeepSignalHandlers,
    LastCallback,
    trainer_arguments,
)
from study.training.preemption import PreemptedError, handle_signals
from study.training.trial import train
from tests.training.trials import SHORT, job, smoke_trial

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
SLURM = {"JOB_ID": "7", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}


def fit(
    *callbacks: L.Callback, module: L.LightningModule | None = None, resume: Path | None = None, **arguments: Any
) -> L.Trainer:
    """Trains two epochs of two batches."""
    defaults = {"max_epochs": 2, "num_sanity_val_steps": 0, "limit_train_batches": 2, "limit_val_batches": 1}
    trainer = L.Trainer(callbacks=[*callbacks, Checkpoint()], **{**QUIET, **defaults, **arguments})
    trainer.fit(module or BoringModel(), ckpt_path=resume)
    return trainer


# ------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that reached this process's own handler of SIGTERM."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


class SendSigterm(L.Callback):
    """Sends SIGTERM to this process right after Lightning has set its handlers."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_lightning_still_ends_training_after_sigterm(received: list[int]) -> None:
    with pytest.raises(SIGTERMException):
        fit(SendSigterm())


def test_sigterm_right_after_lightning_has_set_its_handlers_preempts_the_trial(tmp_path: Path) -> None:
    work = job(smoke_trial(*SHORT), tmp_path / "r0")
    work.folder.mkdir(parents=True)
    with handle_signals() as stop_request, pytest.raises(PreemptedError, match="SIGTERM after step 0"):
        train(work, TrialFolder(work.folder), callbacks=[SendSigterm()], stop_request=stop_request)


def test_our_handlers_are_set_in_training_validation_and_test_and_afterwards(received: list[int]) -> None:
    ours, seen = signal.getsignal(signal.SIGTERM), []

    class Look(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

        on_validation_batch_start = on_test_batch_start = on_train_batch_start  # type: ignore[assignment]

    trainer = fit(KeepSignalHandlers(), Look())
    trainer.validate(BoringModel(), verbose=False)
    trainer.test(BoringModel(), verbose=False)
    assert len(seen) > 6
    assert set(seen) == {ours}
    assert signal.getsignal(signal.SIGTERM) == ours


# --------------------------------------------------------------------------------------------------- hooks


def epoch_ends(base: type[L.Callback]) -> list[str]:
    """The order of the hooks at the end of an epoch of a module and a callback of this base."""
    order: list[str] = []

    class Late(base):  # type: ignore[misc, valid-type]
        def on_train_epoch_end(self, *_: Any) -> None:
            order.append("callback")

    class Module(BoringModel):
        def on_train_epoch_end(self) -> None:
            order.append("module")

    fit(Late(), module=Module())
    return order[:2]


def test_other_callbacks_still_run_before_the_module() -> None:
    assert epoch_ends(L.Callback) == ["callback", "module"]
    assert epoch_ends(LastCallback) == ["module", "callback"]


def test_the_iterator_of_a_resumed_epoch_is_still_created_before_the_epoch_starts(tmp_path: Path) -> None:
    events: list[str] = []

    class Loader:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[torch.Tensor]:
            events.append("iterator")
            return iter([torch.ones(1, 32)] * 2)

    class Module(BoringModel):
        def train_dataloader(self) -> Any:
            return Loader()

        def on_train_epoch_start(self) -> None:
            events.append("epoch")

    fit(module=Module(), max_epochs=1, limit_val_batches=0).save_checkpoint(tmp_path / "last.ckpt")
    events.clear()
    fit(module=Module(), resume=tmp_path / "last.ckpt", limit_val_batches=0)
    assert events[-2:] == ["iterator", "epoch"]


# --------------------------------------------------------------------------------------------- checkpoints


def test_lightning_still_stages_checkpoints_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        TorchCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"a": 1}


# --------------------------------------------------------------------------------------------------- Slurm


def test_lightning_still_takes_slurm_tasks_for_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "NTASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises((RuntimeError, ValueError), match="ntasks"):
        L.Trainer(**QUIET)
    assert L.Trainer(**QUIET, **trainer_arguments()).world_size == 1


def test_lightning_still_loads_any_slurm_checkpoint_in_its_root_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SLURM, "NTASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fit(**trainer_arguments()).save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    started: list[int] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            started.append(trainer.global_step)

        def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            started.append(trainer.global_step)

    monkeypatch.chdir(tmp_path)
    fit(Look(), **trainer_arguments())
    assert started == [0, 4]
    started.clear()
    fit(Look(), plugins=[LightningEnvironment()], default_root_dir=tmp_path)
    assert started == [4]  # nothing is left to train


# ---------------------------------------------------------------------------------------- torch and output

SCRIPT = """
import sys, torch, lightning.pytorch as L
from lightning.pytorch.demos.boring_classes import BoringModel
from study.training.process_setup import set_up_process
def train():
    L.Trainer(deterministic="warn", max_steps=1, limit_val_batches=0, logger=False, enable_progress_bar=False,
              enable_model_summary=False, enable_checkpointing=False, accelerator="cpu").fit(BoringModel())
    print(bool(torch.empty(3).isnan().all()))
train()
print("now with our settings", file=sys.stderr)
set_up_process(1)
train()
"""


@pytest.mark.slow
def test_deterministic_mode_still_fills_memory_and_lightning_still_prints_tips() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\nFalse\n"
    tips, separator, ours = done.stderr.partition("now with our settings\n")
    assert tips
    assert (bool(separator), ours) == (True, "")


# -------------------------------------------------------------------------------------------- torchmetrics


def test_torchmetrics_still_synchronizes_image_by_image() -> None:
    """A rank with fewer images then makes fewer calls, and the others wait for it."""

    def count_calls(images: int) -> int:
        calls: list[torch.Tensor] = []
        metric = MeanAveragePrecision(backend="faster_coco_eval")
        box, label = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([1])
        for _ in range(images):
            found = {"boxes": box, "scores": torch.ones(1), "labels": label}
            metric.update([found], [{"boxes": box, "labels": label}])

        def gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
            calls.append(tensor)
            return [tensor]

        metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
        return len(calls)

    assert count_calls(1) < count_calls(2)
