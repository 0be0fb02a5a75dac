"""What all tasks share: steps, parts, looks at the loss, several devices, evaluation. A task is a subclass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from study.config.schema import TrialConfig
from study.config.seeds import derive_seed
from study.data.batches import Batch, split_batch
from study.norms import SparseSwitchNorm2d, average_statistics, set_radius, switch_parameters
from study.tasks.distributed import ProcessGroup
from study.tasks.optimizers import build_optimizer, build_schedule

RECALIBRATION_BATCHES = 200  # statistics batches; the SN authors' number
CHECK_STEPS = 50  # steps between looks at the loss and updates of the metrics: each look waits for the device
GROUP_CHECK_STEPS = 10  # of several devices, which exchange what they have seen, and can leave, at looks only
PENDING_NUMBERS = 2**20  # that are kept for a look
EVALUATIONS = ("val", "fit", "test")


class DivergedError(Exception):
    """The training loss became NaN or Inf. This ends the trial, and is its result."""


class TrainingModule(L.LightningModule):
    """Trains `network` on batches of its task (study/data/batches.py).

    Validation gives `val_*`; testing takes the training split (`fit_*`, in evaluation mode and without augmentation)
    and the test split (`test_*`), in this order. A subclass says what the loss is and what is measured.

    Each of a `team` trains on its part of every batch, and takes it in `accumulate` parts: one backward pass each, one
    step. Between looks, a device has its own running statistics and has seen its own losses; after one, all have the
    same, so that a checkpoint is that of any number of devices.
    """

    main_metric: str  # the task's score
    uses_rng: bool = False  # whether a step draws from the global generator

    def __init__(
        self,
        network: nn.Module,
        config: TrialConfig,
        *,
        steps_per_epoch: int,
        seed: int,
        team: ProcessGroup = ProcessGroup(),  # noqa: B008  # frozen
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a fifth of Lightning's calls around a step are its closures' and hooks'
        self.network, self.config, self.seed = network, config, seed
        self.team, self.accumulate = team, accumulate
        self.steps_per_epoch = steps_per_epoch
        self.learning_rate = config.base_learning_rate
        longest = CHECK_STEPS if team.ranks == 1 else GROUP_CHECK_STEPS
        self.check_steps = max(1, min(longest, PENDING_NUMBERS // self.count_pending()))
        self.train_metrics = _collect("train_", {**self.build_training_metrics(), "loss": build_mean()})
        self.train_metrics.persistent(True)  # in a checkpoint within an epoch
        for metric in self.train_metrics.values():
            metric.sync_on_compute = False  # each has seen what all have
        self.evaluation_metrics = nn.ModuleDict(
            {name: _collect(f"{name}_", self.build_evaluation_metrics()) for name in EVALUATIONS}
        )
        self.is_sparse = any(isinstance(module, SparseSwitchNorm2d) for module in network.modules())
        self.tracking: list[Any] = [
            module for module in network.modules() if isinstance(getattr(module, "running_mean", None), Tensor)
        ]
        # Of steps since a look: what the training metrics take, and the loss.
        self.pending_losses: list[tuple[Tensor, ...]] = []
        # What the last epoch came to, for the recorder. `log_dict` would take ten times as long as the metrics take.
        self.epoch_metrics: dict[str, float] = {}
        self.recalibration_batches: Iterable[Batch] = ()

    # ------------------------------------------------------------------------------------ what a task says

    def count_pending(self) -> int:
        """Numbers that a step leaves for the next look."""
        return 1

    def build_training_metrics(self) -> dict[str, Metric]:
        """By name; `loss` there is anyway."""
        return {}

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        """By name, the main one among them."""
        raise NotImplementedError

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of a batch, and what the training metrics are to take of it, detached."""
        raise NotImplementedError

    def update_training(self, metrics: Any, seen: Sequence[Tensor]) -> None:
        """Takes what `compute_loss` has left, stacked to (ranks, steps, ...), into the training metrics."""

    def update_evaluation(self, metrics: Any, images: Any, targets: Any) -> None:
        """Takes a batch into the metrics of an evaluation."""
        raise NotImplementedError

    def forward_norms(self, images: Any, targets: Any) -> None:
        """Has every norm layer see a batch as it would in training; no module but those is in training mode."""
        self.network(images)

    # ------------------------------------------------------------------------------------------------ shared

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook that runs, some thirty times a step; `nn.Module` looks for parameters in each.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, images: Any) -> Any:
        """What the network makes of a batch's images."""
        return self.network(images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.network, self.config)
        schedule = build_schedule(optimizer, self.config, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------------------------------ training

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["unseen"] = [torch.stack(parts) for parts in zip(*self.pending_losses, strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.pending_losses = list(zip(*checkpoint["unseen"], strict=True))

    def on_train_start(self) -> None:
        self.pending_losses = [tuple(part.to(self.device) for part in step) for step in self.pending_losses]
        if self.team.ranks > 1 and self.pending_losses:  # by one device alone, of whole batches
            self._check_losses(self.global_step % self.steps_per_epoch, ProcessGroup())

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        loader.set_epoch(self.current_epoch)
        self.pending_losses.clear()

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.config.dropout:  # counter-based, so that a resume repeats it
            rank = (self.team.rank,) if self.team.rank else ()
            torch.manual_seed(derive_seed("dropout", self.seed, self.global_step, *rank))
        if batch_idx == self.steps_per_epoch - 1:  # the epoch's last is logged
            self.learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.is_sparse:
            set_radius(self.network, self.global_step / (self.steps_per_epoch * self.config.epochs))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        optimizer.zero_grad()
        whole = self.accumulate == 1 and not self.uses_rng  # what draws is seeded part by part
        self.pending_losses.append(self._forward_backward(batch) if whole else self._forward_backward_in_parts(batch))
        if (batch_idx + 1) % self.check_steps == 0:
            self._check_losses(batch_idx + 1, self.team)
        if self.team.ranks > 1:
            learned = (parameter for group in optimizer.param_groups for parameter in group["params"])
            self.team.all_reduce_mean([parameter.grad for parameter in learned if parameter.grad is not None])
        optimizer.step()
        schedule.step()

    def _forward_backward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Adds the gradients of the mean loss; what the metrics take, and the loss, detached."""
        loss, seen = self.compute_loss(*batch)
        self.manual_backward(loss / self.accumulate if self.accumulate > 1 else loss)
        return *seen, loss.detach()

    def _forward_backward_in_parts(self, batch: Batch) -> tuple[Tensor, ...]:
        """The same of equal parts in turn. Running statistics come out as if they moved once, by the parts' average."""
        steps = []
        for part, piece in enumerate(split_batch(batch, self.accumulate)):
            for layer in self.tracking:
                layer.momentum = part_momentum(self.config.norm_momentum, part, self.accumulate)
            if self.uses_rng:  # the same on one device as on several
                part += self.team.rank * self.accumulate
                torch.manual_seed(derive_seed("part", self.seed, self.global_step, part))
            steps.append(self._forward_backward(piece))
        return tuple(
            torch.cat(parts) if parts[0].dim() else torch.stack(parts).mean() for parts in zip(*steps, strict=True)
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.config.logit_gradient_clip is not None:
            nn.utils.clip_grad_norm_(switch_parameters(self.network), self.config.logit_gradient_clip)

    def on_train_epoch_end(self) -> None:
        self._check_losses(self.steps_per_epoch, self.team)
        self._compute_and_reset(self.train_metrics)
        self.epoch_metrics["learning_rate"] = self.learning_rate

    def check_weights(self) -> None:
        """Raises `DivergedError` after a last step that broke the weights: no training loss follows to show it."""
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise DivergedError("the weights were not finite after the last step")

    def _check_losses(self, steps: int, team: ProcessGroup) -> None:
        """Takes the last of this epoch's `steps` into the metrics, many at once: an update costs as much as a layer.

        Raises `DivergedError` with the first step whose loss was not finite.
        """
        if not self.pending_losses:
            return
        gathered = [team.gather(torch.stack(parts)) for parts in zip(*self.pending_losses, strict=True)]
        losses = gathered.pop().mean(0)
        if team.ranks > 1:
            self._share_statistics()
        bad = ~torch.isfinite(losses)
        if bad.any():
            step = self.current_epoch * self.steps_per_epoch + steps - len(losses) + int(bad.int().argmax())
            raise DivergedError(f"the training loss was not finite at step {step}")
        self.train_metrics["loss"].update(losses)
        self.update_training(self.train_metrics, gathered)
        self.pending_losses.clear()

    def _share_statistics(self) -> None:
        """Averages running statistics over devices. Exact at any time, as they move by sums and fixed factors."""
        self.team.all_reduce_mean([
            statistic for layer in self.tracking for statistic in (layer.running_mean, layer.running_var)
        ])  # fmt: skip

    # ---------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        if self.config.bn_statistics == "batch" or self.config.start_rule != "scratch":
            count = -(-RECALIBRATION_BATCHES * self.config.statistics_batch // self.config.gradient_batch)
            batches = islice(self.recalibration_batches, count)
            parts = (part for batch in batches for part in split_batch(batch, self.accumulate))
            average_statistics(self.network, parts, lambda _, part: self.forward_norms(*part))
        self._share_statistics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._compute_and_reset(self.evaluation_metrics["val"])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(("fit", "test")[dataloader_idx], batch)

    def on_test_epoch_end(self) -> None:
        self._compute_and_reset(self.evaluation_metrics["fit"])
        self._compute_and_reset(self.evaluation_metrics["test"])

    def _evaluate(self, name: str, batch: Batch) -> None:
        if len(batch[0]):  # else another device has the split's last images
            self.update_evaluation(self.evaluation_metrics[name], *batch)

    def _compute_and_reset(self, metrics: Any) -> None:
        values = {name: float(value) for name, value in metrics.compute().items()}
        prefix = metrics.prefix
        if prefix != "train_":
            values[f"{prefix}score"] = values[f"{prefix}{self.main_metric}"]
        self.epoch_metrics |= values
        metrics.reset()


def build_mean() -> Metric:
    """Of losses: one that is not a number must stay so."""
    return MeanMetric(nan_strategy="disable")


def _collect(prefix: str, metrics: dict[str, Metric]) -> MetricCollection:
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]


def part_momentum(momentum: float, part: int, parts: int) -> float:
    """The momentum of part `part` (from 0) of `parts`, so that all have the weight momentum / parts in the end.

    What comes after part i leaves it 1 - (parts - 1 - i) * momentum / parts of its own.
    """
    share = momentum / parts
    return share / (1 - (parts - 1 - part) * share)
