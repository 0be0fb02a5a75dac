"""What rank 0 decides after a step or an epoch, and the callback that follows it on the other ranks."""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Any

import lightning.pytorch as L

from study.tasks.distributed import ProcessGroup
from study.training.lightning_workarounds import KeepSignalHandlers, LastCallback
from study.training.preemption import PreemptedError


class Action(IntEnum):
    """What all ranks do next. `STOP`: the search prunes the trial. `PREEMPT`: the process was asked to stop."""

    CONTINUE = 0
    STOP = 1
    PREEMPT = 2


class FollowerRankCallback(KeepSignalHandlers, LastCallback):
    """Callback on ranks > 0: follows rank 0's stop and preemption decisions; writes nothing."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._apply_action(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.restore()
        pl_module.after_step = partial(self._after_step, trainer, pl_module)

    def _after_step(self, trainer: L.Trainer, pl_module: Any, number: int) -> None:
        if is_checkpoint_step(pl_module, number):
            self._apply_action(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._apply_action(trainer, pl_module)

    def _apply_action(self, trainer: L.Trainer, pl_module: Any) -> None:
        action = self.group.broadcast(Action.CONTINUE)
        if action == Action.PREEMPT:
            raise PreemptedError("rank 0", pl_module.steps_taken)
        trainer.should_stop = action == Action.STOP


def is_checkpoint_step(pl_module: Any, number: int) -> bool:
    """Whether a checkpoint within an epoch can follow a step, the `number`-th of its epoch; all ranks agree on it.

    On several ranks only after a loss check, which makes their states equal. Not after the last step of an epoch, whose
    end can have a checkpoint.
    """
    alone = pl_module.group.world_size == 1
    return number + 1 < pl_module.steps_per_epoch and (alone or not pl_module.pending_losses)
