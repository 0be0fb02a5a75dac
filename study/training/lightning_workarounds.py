"""Workarounds of Lightning's behaviour, each with its reason and upstream thread; all but one use public names only.

`tests/training/test_lightning_workarounds.py` fails when one of them is no longer needed. Numbers are issues and pull
requests of Lightning-AI/pytorch-lightning. Two more workarounds are where they act:

- Training loaders are generators that resume from a `state_dict` (study/data). Lightning creates the iterator of a
  resumed epoch before it sets the epoch (#21938), and would restart any other loader at its first batch (#18780).
- `AveragePrecision` (study/tasks/detection.py) gathers its state in one call (Lightning-AI/torchmetrics#3336).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from study.config.signals import STOP_SIGNALS
from study.record.checkpoint import write_checkpoint


class KeepSignalHandlers(L.Callback):
    """Keeps this process's signal handlers in a Trainer, which has no option for that (#5225, closed as won't fix).

    Lightning adds a SIGTERM handler of its own. After a SIGTERM it raises `SIGTERMException` at the end of the batch,
    with or without a checkpoint, on some ranks earlier than on others (#20806), and the process exits with 0 (#19916).

    Lightning sets its handlers after `setup` and before the first `on_..._start`; the handlers of `setup` are then set
    again. Lightning's handler calls ours, so a signal in between is not lost, but it must end the run at that hook.
    Blocking the signal instead would not help: the kernel delivers it to any other thread.

    A base of other callbacks, because a callback of its own would take half a percent of a short step.
    """

    handlers: Mapping[signal.Signals, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere, nobody can set handlers
            self.handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore(self, *_: Any, **__: Any) -> None:
        """Sets the handlers that `setup` found."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    on_train_start = on_validation_start = on_test_start = on_exception = teardown = restore


class LastCallback(Checkpoint):
    """Base of a callback that runs after all others, and whose `on_train_epoch_end` runs after the module's.

    Lightning calls other callbacks before the module's hook, when the epoch's metrics are incomplete (#16567). Having
    a `Checkpoint` also keeps the Trainer from adding a `ModelCheckpoint`.
    """


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its destination and renames it.

    Lightning stages it in $TMPDIR. Where that is another file system, the last step is a copy, and a kill leaves half a
    checkpoint in place of the old one (#19970, #21253; a fix is proposed in #21744).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(Path(path), checkpoint)


def trainer_arguments() -> dict[str, Any]:
    """Arguments of `Trainer` for atomic checkpoints, and for a trial that runs in a Slurm job.

    By default Lightning takes the tasks of a Slurm job for the ranks of the Trainer and handles the job's signals; the
    plugin `LightningEnvironment` is the maintainers' way to turn this off (#14300). Even then it loads the newest
    `hpc_ckpt_*.ckpt` in its root folder, whichever trial wrote it (#12369); in /dev/null it finds none.
    """
    return {"plugins": [AtomicCheckpointIO(), LightningEnvironment()], "default_root_dir": os.devnull}


def disable_memory_fill() -> None:
    """Keeps torch from filling new memory in deterministic mode, a tenth of a step (pytorch/pytorch#117081).

    Lightning turns deterministic mode on. The fill only makes reads of uninitialized memory reproducible.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def silence_lightning() -> None:
    """Hides Lightning's tips, and warnings about what is intended here, such as a resume within an epoch (#18780)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
