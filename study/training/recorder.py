"""Writes the record of a trial while it trains, and the checkpoints that it resumes from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from study.models.geometry import LayerGeometry
from study.plan.trials import PlannedTrial
from study.record.checkpoint import rotate_checkpoints
from study.record.contents import SCHEMA_VERSION
from study.record.io import nan_to_none, write_bytes
from study.record.layout import TrialFolder
from study.record.switch_weights import average_network, average_stages, encode_parquet, snapshot_weights
from study.record.wandb_run import Tracker
from study.tasks.distributed import ProcessGroup
from study.training.follower_rank import Action, is_checkpoint_step
from study.training.lightning_workarounds import KeepSignalHandlers, LastCallback
from study.training.preemption import PreemptedError, StopRequest

CHECKPOINT_TIME_SHARE = 0.02  # checkpoints within epochs take at most this share of the time


class Recorder(KeepSignalHandlers, LastCallback):
    """Callback on rank 0: records every epoch, writes checkpoints, and decides when all ranks stop.

    A checkpoint is due at the end of an epoch, within a long epoch, and when the trial is asked to stop.

    The whole history is in the checkpoint. A resumed trial writes the files of its record again from it, so that they
    contain each epoch once, whatever a kill has left in them.
    """

    def __init__(
        self,
        folder: TrialFolder,
        trial: PlannedTrial,
        layers: list[LayerGeometry],
        tracker: Tracker,
        checkpoint_seconds: float,
        stop_request: StopRequest,
        group: ProcessGroup,
    ) -> None:
        """layers: the switch layers of the network."""
        self.folder, self.trial, self.layers, self.tracker = folder, trial, layers, tracker
        self.checkpoint_seconds, self.stop_request, self.group = checkpoint_seconds, stop_request, group
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl
        self.steps: list[int] = []  # taken before each entry of the history
        # Switch weights (layers, statistics, pool), before training and after each epoch.
        self.history: list[Tensor] = []
        self.saved_at = time.monotonic()
        self.due_at = self.saved_at + checkpoint_seconds
        self.pruned = False

    # Plain values and tensors only: a checkpoint must load with weights_only=True.
    def state_dict(self) -> dict[str, Any]:
        history = torch.stack(self.history)
        return {
            "rows": self.rows, "steps": self.steps, "history": history, "pruned": self.pruned, "trial": self.trial.key,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.steps = state_dict["rows"], state_dict["steps"]
        self.history, self.pruned = list(state_dict["history"]), state_dict["pruned"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the record so far: the state before training, or the history in the checkpoint.

        Not in `on_train_start`, which Lightning does not call where the checkpoint leaves nothing to train.
        """
        if not self.history:
            self._add_epoch(trainer, pl_module, {})
        write_bytes(self.folder.metrics, _format_lines(self.rows).encode())
        if self.trial.config.epochs:  # else epoch 0 is to be validated first
            for epoch in range(len(self.history)):
                self._track(epoch)
        if self.pruned:  # an earlier attempt was killed between its last epoch and its result
            trainer.should_stop = True
        self.group.broadcast(Action.STOP if self.pruned else Action.CONTINUE)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.restore()
        pl_module.after_step = partial(self._after_step, trainer, pl_module)
        self._stop_if_requested(pl_module)  # no step has been taken since the checkpoint

    def _after_step(self, trainer: L.Trainer, pl_module: Any, number: int) -> None:
        if not is_checkpoint_step(pl_module, number):
            return
        action = self.group.broadcast(Action.PREEMPT if self.stop_request.signal else Action.CONTINUE)
        if action == Action.PREEMPT or time.monotonic() >= self.due_at:
            self._save(trainer)
        if action == Action.PREEMPT:
            self._stop(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = self._add_epoch(trainer, pl_module, pl_module.epoch_metrics)
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(_format_lines(rows))
        self._track(len(self.history) - 1)
        if self.folder.prune.exists():
            self.pruned = trainer.should_stop = True
        last = self.pruned or trainer.current_epoch + 1 == self.trial.config.epochs
        preempted = self.stop_request.signal is not None and not last
        self.group.broadcast(Action.STOP if self.pruned else Action.PREEMPT if preempted else Action.CONTINUE)
        if last or preempted or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self._save(trainer)
        if preempted:
            self._stop(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.restore()
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop_if_requested(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Records a trial of no epochs, which is only validated: its metrics are those of epoch 0."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.rows += _build_rows(0, pl_module.steps_taken, pl_module.epoch_metrics)
            write_bytes(self.folder.metrics, _format_lines(self.rows).encode())
            self._track(0)
            self._save(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self._stop_if_requested(pl_module)  # the checkpoint of the last epoch has been written

    def last_metrics(self) -> dict[str, float | None]:
        """The metrics of the last epoch."""
        return self._metrics_of(len(self.history) - 1)

    def write_switch_weights(self) -> None:
        """Writes the table of the whole history so far."""
        trial = self.trial
        write_bytes(self.folder.switch_weights, encode_parquet(
            torch.stack(self.history).numpy(), self.steps, self.layers, trial.pool, trial.space, trial.trial_id,
            trial.replicate,
        ))  # fmt: skip

    def _add_epoch(self, trainer: L.Trainer, pl_module: Any, metrics: dict[str, float]) -> list[dict[str, Any]]:
        """Adds the network's state after an epoch to the history; returns the epoch's metric rows."""
        epoch, weights = len(self.history), snapshot_weights(pl_module.network, self.layers, self.trial.space)
        self.history.append(weights)
        self.steps.append(pl_module.steps_taken)
        means = average_network(weights, self.layers, self.trial.pool, self.trial.space)
        rows = _build_rows(epoch, pl_module.steps_taken, {**metrics, **means})
        self.rows += rows
        return rows

    def _track(self, epoch: int) -> None:
        means = average_stages(self.history[epoch], self.layers, self.trial.pool, self.trial.space)
        self.tracker.log_epoch(epoch, {**self._metrics_of(epoch), **means})

    def _metrics_of(self, epoch: int) -> dict[str, float | None]:
        return {row["name"]: row["value"] for row in self.rows if row["epoch"] == epoch}

    def _save(self, trainer: L.Trainer) -> None:
        started = time.monotonic()
        self.write_switch_weights()
        rotate_checkpoints(self.folder)
        trainer.save_checkpoint(self.folder.last_checkpoint)
        self.saved_at = time.monotonic()
        self.due_at = self.saved_at + max(self.checkpoint_seconds, (self.saved_at - started) / CHECKPOINT_TIME_SHARE)

    def _stop_if_requested(self, pl_module: Any) -> None:
        if self.stop_request.signal:
            self._stop(pl_module)

    def _stop(self, pl_module: Any) -> None:
        raise PreemptedError(str(self.stop_request.signal), pl_module.steps_taken)


def _build_rows(epoch: int, step: int, values: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"schema": SCHEMA_VERSION, "epoch": epoch, "step": step, "name": name, "value": nan_to_none(value)}
        for name, value in values.items()
    ]


def _format_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
