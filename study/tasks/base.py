"""The training loop that all tasks share: steps, gradient accumulation, loss checks, several devices, evaluation.

A task is a subclass that defines its loss and its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

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
CHECK_STEPS = 50  # steps between two loss checks on one device: a check waits for the device to finish
GROUP_CHECK_STEPS = 10  # on several devices: they exchange losses, and can stop, only at a check
PENDING_NUMBERS = 2**20  # at most this many numbers are kept until the next check
EVALUATIONS = ("val", "fit", "test")  # prefixes of the metrics of the evaluated splits


class DivergedError(Exception):
    """The training loss became NaN or Inf. This ends the trial, and is its result."""


class Passes(Protocol):
    """Computes the passes of a trial's network. trials: number of trials that share the work."""

    trials: int

    def forward(self, network: nn.Module, images: Any) -> Any: ...

    def backward(self, loss: Tensor) -> None: ...

    def finish(self) -> None:
        """Called when the trial needs no more passes, before it waits for anything else."""


class OwnPasses:
    """The passes of a trial that is trained by itself."""

    trials = 1

    def forward(self, network: nn.Module, images: Any) -> Any:
        return network(images)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def finish(self) -> None:
        pass


OWN_PASSES = OwnPasses()


class TrainingModule(L.LightningModule):
    """Trains `network` on batches of its task (study/data/batches.py).

    Validation computes `val_*`; testing computes `fit_*` on the training split (in evaluation mode and without
    augmentation) and then `test_*` on the test split.

    Each rank of `group` trains on its share of every batch, as `accumulate` micro-batches: one backward pass for each,
    and one optimizer step. Between two loss checks, every rank has its own running statistics and its own losses; after
    a check these are the same on all ranks, so that a checkpoint does not depend on the number of ranks.
    """

    main_metric: str  # the task's score
    uses_rng: bool = False  # whether a training step draws from torch's global generator

    def __init__(
        self,
        network: nn.Module,
        config: TrialConfig,
        *,
        steps_per_epoch: int,
        seed: int,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008  # frozen
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # closures and their hooks are a fifth of what Lightning adds to a step
        self.network, self.config, self.seed = network, config, seed
        self.group, self.accumulate = group, accumulate
        self.steps_per_epoch = steps_per_epoch
        self.learning_rate = config.base_learning_rate
        longest = CHECK_STEPS if group.world_size == 1 else GROUP_CHECK_STEPS
        self.check_steps = max(1, min(longest, PENDING_NUMBERS // self.count_pending()))
        self.train_metrics = _build_collection("train_", {**self.build_training_metrics(), "loss": build_mean()})
        self.train_metrics.persistent(True)  # saved in a checkpoint within an epoch
        for metric in self.train_metrics.values():
            metric.sync_on_compute = False  # they are updated with the values of all ranks
        self.evaluation_metrics = nn.ModuleDict(
            {name: _build_collection(f"{name}_", self.build_evaluation_metrics()) for name in EVALUATIONS}
        )
        self.is_sparse = any(isinstance(module, SparseSwitchNorm2d) for module in network.modules())
        self.statistics_layers: list[Any] = [  # with running statistics
            module for module in network.modules() if isinstance(getattr(module, "running_mean", None), Tensor)
        ]
        # One entry per step since the last check: the outputs that the training metrics need, and the loss.
        self.pending_losses: list[tuple[Tensor, ...]] = []
        # Metrics of the last epoch, for the recorder. `log_dict` would take ten times as long as computing them.
        self.epoch_metrics: dict[str, float] = {}
        self.recalibration_batches: Iterable[Batch] = ()
        self.steps_taken = 0
        self.after_step: Callable[[int], None] = lambda number: None  # gets the step's number in its epoch, from 0
        self.passes: Passes = OWN_PASSES

    # --------------------------------------------------------------------------------- defined by each task

    def count_pending(self) -> int:
        """Number of values that a step keeps for the next check."""
        return 1

    def build_training_metrics(self) -> dict[str, Metric]:
        """Training metrics by name, besides `loss`."""
        return {}

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        """Evaluation metrics by name, `main_metric` among them."""
        raise NotImplementedError

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss of a batch, and the detached outputs that the training metrics need."""
        raise NotImplementedError

    def update_training_metrics(self, metrics: Any, outputs: Sequence[Tensor]) -> None:
        """Updates the training metrics with outputs of `compute_loss`, stacked to (ranks, steps, ...)."""

    def update_evaluation_metrics(self, metrics: Any, images: Any, targets: Any) -> None:
        """Updates the metrics of an evaluation with a batch."""
        raise NotImplementedError

    def forward_norms(self, images: Any, targets: Any) -> None:
        """Runs a batch through every norm layer as training does, with no other module in training mode."""
        self.network(images)

    def forward(self, images: Any) -> Any:
        """The network's output for a batch of images."""
        return self.passes.forward(self.network, images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.network, self.config)
        schedule = build_schedule(optimizer, self.config, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------------------------------------ training

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["global_step"] = self.steps_taken
        # Networks that are computed as one have parts of larger tensors, which would be saved whole.
        checkpoint["state_dict"] = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        checkpoint["unseen"] = [torch.stack(values) for values in zip(*self.pending_losses, strict=True)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps_taken = checkpoint["global_step"]
        self.pending_losses = list(zip(*checkpoint["unseen"], strict=True))

    def on_train_start(self) -> None:
        self.pending_losses = [tuple(value.to(self.device) for value in step) for step in self.pending_losses]
        if self.group.world_size > 1 and self.pending_losses:
            # The checkpoint is of a trial on one device, so that its losses are of whole batches.
            self._check_losses(self.steps_taken % self.steps_per_epoch, ProcessGroup())

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        loader.set_epoch(self.current_epoch)
        self.pending_losses.clear()

    def training_step(self, batches: Iterator[Batch], batch_idx: int) -> None:
        """Trains the steps of an epoch that are left.

        For Lightning they are one batch (`WholeEpochs`): what it does around a batch takes as long as the arithmetic of
        a small network.
        """
        scaled = self.config.precision == "float16"  # by Lightning's optimizer
        optimizer: Any = self.optimizers(use_pl_optimizer=scaled)
        schedule: Any = self.lr_schedulers()
        for number, batch in enumerate(batches, self.steps_taken % self.steps_per_epoch):
            if self.device.type != "cpu":
                batch = self.transfer_batch_to_device(batch, self.device, 0)
            self._take_step(batch, number, optimizer)
            if not scaled:
                self.on_before_optimizer_step(optimizer)
            optimizer.step()
            schedule.step()
            self.steps_taken += 1
            self.after_step(number)

    def _take_step(self, batch: Batch, number: int, optimizer: Any) -> None:
        """Computes the gradients of a step, the `number`-th of its epoch."""
        if self.config.dropout:  # seeded by the step, so that a resumed run draws the same numbers
            rank = (self.group.rank,) if self.group.rank else ()
            torch.manual_seed(derive_seed("dropout", self.seed, self.steps_taken, *rank))
        if number == self.steps_per_epoch - 1:  # the learning rate of an epoch's last step is recorded
            self.learning_rate = optimizer.param_groups[0]["lr"]
        if self.is_sparse:
            set_radius(self.network, self.steps_taken / (self.steps_per_epoch * self.config.epochs))
        optimizer.zero_grad()
        whole = self.accumulate == 1 and not self.uses_rng  # with an RNG, each micro-batch has a seed of its own
        self.pending_losses.append(self._forward_backward(batch) if whole else self._accumulate_gradients(batch))
        if (number + 1) % self.check_steps == 0:
            self._check_losses(number + 1, self.group)
        if self.group.world_size > 1:
            trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
            self.group.all_reduce_mean([parameter.grad for parameter in trained if parameter.grad is not None])

    def _forward_backward(self, batch: Batch) -> tuple[Tensor, ...]:
        """Adds the gradients of the mean loss; returns the outputs for the metrics and the loss, detached."""
        loss, outputs = self.compute_loss(*batch)
        mean = loss / self.accumulate if self.accumulate > 1 else loss
        if self.config.precision == "float16":
            self.manual_backward(mean)  # scales the loss
        else:
            self.passes.backward(mean)  # the hooks of `manual_backward` take 2 % of a short step
        return *outputs, loss.detach()

    def _accumulate_gradients(self, batch: Batch) -> tuple[Tensor, ...]:
        """`_forward_backward` over equal micro-batches.

        Running statistics end as if they had been updated once, with the average over the micro-batches.
        """
        steps = []
        for index, micro_batch in enumerate(split_batch(batch, self.accumulate)):
            for layer in self.statistics_layers:
                layer.momentum = micro_batch_momentum(self.config.norm_momentum, index, self.accumulate)
            if self.uses_rng:  # numbered over all ranks, so that the number of devices changes no draw
                part = self.group.rank * self.accumulate + index
                torch.manual_seed(derive_seed("part", self.seed, self.steps_taken, part))
            steps.append(self._forward_backward(micro_batch))
        return tuple(
            torch.cat(values) if values[0].dim() else torch.stack(values).mean() for values in zip(*steps, strict=True)
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.config.logit_gradient_clip is not None:
            nn.utils.clip_grad_norm_(switch_parameters(self.network), self.config.logit_gradient_clip)

    def on_train_epoch_end(self) -> None:
        self._check_losses(self.steps_per_epoch, self.group)
        self._compute_and_reset(self.train_metrics)
        self.epoch_metrics["learning_rate"] = self.learning_rate

    def check_weights(self) -> None:
        """Raises `DivergedError` where the last step made a weight NaN or Inf, which no later training loss shows."""
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise DivergedError("the weights were not finite after the last step")

    def _check_losses(self, steps: int, group: ProcessGroup) -> None:
        """Updates the training metrics with the pending steps, the last of this epoch's `steps`.

        Many steps at once, because an update costs as much as a layer. Raises `DivergedError` with the first step whose
        loss was not finite.
        """
        if not self.pending_losses:
            return
        outputs = [group.all_gather(torch.stack(values)) for values in zip(*self.pending_losses, strict=True)]
        losses = outputs.pop().mean(0)
        if group.world_size > 1:
            self._average_running_statistics()
        bad = ~torch.isfinite(losses)
        if bad.any():
            step = self.current_epoch * self.steps_per_epoch + steps - len(losses) + int(bad.int().argmax())
            raise DivergedError(f"the training loss was not finite at step {step}")
        self.train_metrics["loss"].update(losses)
        self.update_training_metrics(self.train_metrics, outputs)
        self.pending_losses.clear()

    def _average_running_statistics(self) -> None:
        """Averages running statistics over the ranks.

        When this happens makes no difference: each update is linear in the statistics, with a constant momentum.
        """
        self.group.all_reduce_mean([
            statistic for layer in self.statistics_layers for statistic in (layer.running_mean, layer.running_var)
        ])  # fmt: skip

    # ---------------------------------------------------------------------------------------- evaluation

    def on_validation_start(self) -> None:
        if self.config.bn_statistics != "moving" or self.config.start_rule != "scratch":
            count = -(-RECALIBRATION_BATCHES * self.config.statistics_batch // self.config.gradient_batch)
            batches = islice(self.recalibration_batches, count)
            micro_batches = (each for batch in batches for each in split_batch(batch, self.accumulate))
            average_statistics(
                self.network,
                micro_batches,
                lambda _, each: self.forward_norms(*each),
                variance="total" if self.config.bn_statistics == "batch_total" else "within",
            )
        self._average_running_statistics()

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
        if len(batch[0]):  # the last batch is empty on a rank that has no image left
            self.update_evaluation_metrics(self.evaluation_metrics[name], *batch)

    def _compute_and_reset(self, metrics: Any) -> None:
        values = {name: float(value) for name, value in metrics.compute().items()}
        prefix = metrics.prefix
        if prefix != "train_":
            values[f"{prefix}score"] = values[f"{prefix}{self.main_metric}"]
        self.epoch_metrics |= values
        metrics.reset()


def build_mean() -> Metric:
    """The mean of a loss, NaN where one of the losses is NaN."""
    return MeanMetric(nan_strategy="disable")


def micro_batch_momentum(momentum: float, index: int, count: int) -> float:
    """The momentum for micro-batch `index` (from 0) of `count`, with which each one ends with weight momentum / count.

    The updates after micro-batch i multiply its weight by 1 - (count - 1 - i) * momentum / count.
    """
    share = momentum / count
    return share / (1 - (count - 1 - index) * share)


def _build_collection(prefix: str, metrics: dict[str, Metric]) -> MetricCollection:
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]
