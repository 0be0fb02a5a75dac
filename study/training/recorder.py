"""Writes the record as training goes, and the checkpoint that a killed trial goes on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from study.models.geometry import LayerGeometry
from study.plan.trials import PlannedTrial
from study.record.checkpoint import rotate
from study.record.io import write_bytes
from study.record.layout import SCHEMA, TrialFolder
from study.record.switch_weights import STATISTICS, parquet_bytes, snapshot
from study.record.wandb_run import Tracker
from study.tasks.distributed import ProcessGroup
from study.training.preemption import PreemptedError, StopRequest

SAVING_SHARE = 0.02  # of the time, at most, goes to checkpoints within epochs
GO_ON, STOP, LEAVE = range(3)  # what the recorder wishes, and all devices do


class Recorder(Checkpoint):
    """After every epoch: metrics and switch weights to the record and the tracker; now and then a checkpoint.

    A checkpoint is due at an epoch's end, within an epoch when that takes long, and when the trial is to leave.
    The whole history travels in the checkpoint. On a resume the files of the record are written anew from it, so they
    never hold an epoch twice or miss one, whatever state a kill has left them in. A `Checkpoint`, because Lightning
    calls those last: the epoch's metrics are complete by then.
    """

    def __init__(
        self,
        folder: TrialFolder,
        trial: PlannedTrial,
        layers: list[LayerGeometry],
        tracker: Tracker,
        checkpoint_seconds: float,
        leave: StopRequest,
        team: ProcessGroup,
    ) -> None:
        self.folder, self.trial, self.tracker = folder, trial, tracker
        self.layers = layers  # that choose
        self.checkpoint_seconds, self.leave, self.team = checkpoint_seconds, leave, team
        self.rows: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.history: list[Tensor] = []
        self.saved_at = time.monotonic()
        self.due_at = self.saved_at + checkpoint_seconds
        self.pruned = False

    # Plain values and tensors only: a checkpoint must load with weights_only=True.
    def state_dict(self) -> dict[str, Any]:
        history = torch.stack(self.history)
        return {"rows": self.rows, "steps": self.steps, "history": history, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.steps = state_dict["rows"], state_dict["steps"]
        self.history, self.pruned = list(state_dict["history"]), state_dict["pruned"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the record: a new one with the state before training, or the checkpoint's.

        Not `on_train_start`, which Lightning skips where the checkpoint leaves nothing to train.
        """
        if not self.history:
            self._observe(trainer, pl_module, {})
        write_bytes(self.folder.metrics, "".join(_line(row) for row in self.rows).encode())
        for epoch in range(len(self.history)):
            self._track(epoch)
        if self.pruned:  # killed after its last epoch and before its result
            trainer.fit_loop.max_epochs = len(self.history) - 1
        self.team.broadcast(STOP if self.pruned else GO_ON)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not is_checkpoint_step(pl_module, batch_idx):
            return
        wish = self.team.broadcast(LEAVE if self.leave.signal else GO_ON)
        if wish == LEAVE or time.monotonic() >= self.due_at:
            self._save(trainer)
        if wish == LEAVE:
            self._stop_with_checkpoint(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        new = self._observe(trainer, pl_module, pl_module.epoch_metrics)
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in new))
        self._track(len(self.history) - 1)
        if self.folder.prune.exists():
            self.pruned = trainer.should_stop = True
        last = self.pruned or trainer.current_epoch + 1 == self.trial.config.epochs
        leaving = self.leave.signal is not None and not last
        self.team.broadcast(STOP if self.pruned else LEAVE if leaving else GO_ON)
        if last or leaving or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self._save(trainer)
        if leaving:
            self._stop_with_checkpoint(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Of a trial of no epochs, which is validated by itself: epoch 0 is its last, and has the metrics of one."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.rows += self._rows(0, trainer.global_step, pl_module.epoch_metrics)
            write_bytes(self.folder.metrics, "".join(_line(row) for row in self.rows).encode())
            self._track(0)
            self._save(trainer)

    def on_test_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.leave.signal:  # the last epoch's checkpoint is there
            self._stop_with_checkpoint(trainer)

    def last_metrics(self) -> dict[str, float | None]:
        """The metrics of the last epoch."""
        epoch = len(self.history) - 1
        return {row["name"]: row["value"] for row in self.rows if row["epoch"] == epoch}

    def network_means(self, epoch: int) -> dict[str, float]:
        """Switch weights averaged over layers, each layer counting the same.

        Of the backbone, to be compared between tasks: `switch/<statistic>/<normalizer>`. Of a head:
        `switch/<role>/<statistic>/<normalizer>`.
        """
        return self._means_by(epoch, lambda place: "switch" if place.role == "backbone" else f"switch/{place.role}")

    def stage_means(self, epoch: int) -> dict[str, float]:
        """The same of the backbone's stages: `switch/stage<k>/<statistic>/<normalizer>`."""
        return self._means_by(epoch, lambda place: f"switch/stage{place.stage}" if place.role == "backbone" else None)

    def _means_by(self, epoch: int, name: Callable[[LayerGeometry], str | None]) -> dict[str, float]:
        """Means over the layers of equal name; those without one do not count."""
        names = [name(place) for place in self.layers]
        means: dict[str, float] = {}
        for prefix in dict.fromkeys(filter(None, names)):
            chosen = [index for index, other in enumerate(names) if other == prefix]
            means |= _means(self.history[epoch][chosen], self.trial.pool, prefix)
        return means

    def write_switch_weights(self) -> None:
        """The table of the whole history so far."""
        table = parquet_bytes(
            torch.stack(self.history).numpy(), self.steps, self.layers, self.trial.pool,
            self.trial.trial_id, self.trial.replicate,
        )  # fmt: skip
        write_bytes(self.folder.switch_weights, table)

    def _observe(self, trainer: L.Trainer, pl_module: Any, metrics: dict[str, float]) -> list[dict[str, Any]]:
        """Takes the state after an epoch into the history and returns its metric rows."""
        epoch, step = len(self.history), trainer.global_step
        self.history.append(snapshot(pl_module.network, self.layers))
        self.steps.append(step)
        new = self._rows(epoch, step, {**metrics, **self.network_means(epoch)})
        self.rows += new
        return new

    @staticmethod
    def _rows(epoch: int, step: int, values: dict[str, float]) -> list[dict[str, Any]]:
        return [
            {"schema": SCHEMA, "epoch": epoch, "step": step, "name": name, "value": nan_to_none(value)}
            for name, value in values.items()
        ]

    def _track(self, epoch: int) -> None:
        metrics = {row["name"]: row["value"] for row in self.rows if row["epoch"] == epoch}
        self.tracker.log_epoch(epoch, {**metrics, **self.stage_means(epoch)})

    def _save(self, trainer: L.Trainer) -> None:
        started = time.monotonic()
        self.write_switch_weights()
        rotate(self.folder)
        trainer.save_checkpoint(self.folder.last_checkpoint)
        self.saved_at = time.monotonic()
        self.due_at = self.saved_at + max(self.checkpoint_seconds, (self.saved_at - started) / SAVING_SHARE)

    def _stop_with_checkpoint(self, trainer: L.Trainer) -> None:
        raise PreemptedError(str(self.leave.signal), trainer.global_step)


class FollowerRankCallback(Checkpoint):
    """In place of the recorder on the other devices of a trial: does what that one wishes, and records nothing."""

    def __init__(self, team: ProcessGroup) -> None:
        self.team = team

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.team.broadcast(GO_ON) == STOP:
            trainer.fit_loop.max_epochs = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_checkpoint_step(pl_module, batch_idx):
            self._apply_action(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply_action(trainer)

    def _apply_action(self, trainer: L.Trainer) -> None:
        wish = self.team.broadcast(GO_ON)
        if wish == LEAVE:
            raise PreemptedError("the recorder", trainer.global_step)
        trainer.should_stop = wish == STOP


def is_checkpoint_step(pl_module: Any, batch_idx: int) -> bool:
    """Whether a step within an epoch can have a checkpoint: of several devices, after a look, when all are the same.

    The last step has none: its epoch ends, and may have one then.
    """
    alone = pl_module.team.ranks == 1
    return batch_idx + 1 < pl_module.steps_per_epoch and (alone or not pl_module.pending_losses)


def nan_to_none(value: float) -> float | None:
    """NaN and Inf have no JSON; a reader sees null."""
    return value if math.isfinite(value) else None


def _means(weights: Tensor, pool: tuple[str, ...], prefix: str) -> dict[str, float]:
    """Means over layers of (layers, statistics, pool)."""
    mean = weights.double().mean(0)
    return {
        f"{prefix}/{statistic}/{normalizer}": float(mean[s, k])
        for s, statistic in enumerate(STATISTICS)
        for k, normalizer in enumerate(pool)
    }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
