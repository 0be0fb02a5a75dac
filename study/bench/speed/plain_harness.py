"""The laptop study's trials as a user of Lightning and Optuna would write them: the reference of `bench fuse`.

It imports nothing of this project. Switchable normalization is written from its formula, with batch statistics over
chunks by a reshape; every process runs `Study.optimize` on one SQLite file.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import optuna
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

BATCH, CHUNKS, STEPS = 16, 8, 32  # gradient batch, chunks of batch statistics, steps per epoch


class PlainSwitchNorm(nn.Module):
    """Switchable normalization in plain torch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, chunks: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.chunks, self.momentum, self.eps = chunks, momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(self.chunks if self.training else 1, -1, c, h * w)  # chunks, samples, channels, pixels
        mean_in, var_in = x.mean(3, keepdim=True), x.var(3, unbiased=False, keepdim=True)
        square_in = var_in + mean_in**2
        mean_ln = mean_in.mean(2, keepdim=True)
        var_ln = square_in.mean(2, keepdim=True) - mean_ln**2
        if self.training:
            mean_bn = mean_in.mean(1, keepdim=True)
            var_bn = square_in.mean(1, keepdim=True) - mean_bn**2
            self.running_mean.lerp_(mean_bn.detach().mean(0).flatten(), self.momentum)
            self.running_var.lerp_(var_bn.detach().mean(0).flatten(), self.momentum)
        else:
            mean_bn, var_bn = self.running_mean.view(1, 1, c, 1), self.running_var.view(1, 1, c, 1)
        a, b = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        x = (x - mean) / (var + self.eps).sqrt()
        return x.view(n, c, h, w) * self.weight.view(1, c, 1, 1) + self.bias.view(1, c, 1, 1)


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int, chunks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = PlainSwitchNorm(outputs, chunks)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = PlainSwitchNorm(outputs, chunks)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, PlainSwitchNorm(outputs, chunks))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return y.relu()


class Classifier(L.LightningModule):
    """ResNet-8 of half the width, with its training."""

    def __init__(self, learning_rate: float, epochs: int, chunks: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1, bias=False), PlainSwitchNorm(8, chunks), nn.ReLU(),
            Block(8, 8, 1, chunks), Block(8, 16, 2, chunks), Block(16, 32, 2, chunks),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip
        self.accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(10, average="micro") for name in ("fit", "val", "test")}
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._log(batch, "fit")

    def on_train_epoch_end(self) -> None:
        for name, parameter in self.network.named_parameters():
            if name.endswith("mean_weight"):
                self.log(f"switch/{name}", parameter.softmax(0)[2])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log(batch, "test")

    def configure_optimizers(self) -> Any:
        logits = [p for name, p in self.named_parameters() if name.endswith(("mean_weight", "var_weight"))]
        others = [p for name, p in self.named_parameters() if not name.endswith(("mean_weight", "var_weight"))]
        rate = self.hparams["learning_rate"]
        groups = [{"params": others, "weight_decay": 1e-4}, {"params": logits, "lr": 10 * rate}]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        steps = self.hparams["epochs"] * STEPS
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, 10 * rate], total_steps=steps, pct_start=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = cross_entropy(logits, labels)
        self.accuracy[split](logits, labels)
        values: dict[str, Any] = {f"{split}_loss": loss, f"{split}_accuracy": self.accuracy[split]}
        self.log_dict(values, on_step=False, on_epoch=True)
        return loss


def run(folder: Path, trials: int, epochs: int, processes: int, accumulate: bool, device: str) -> float:
    """Seconds from the first trial's start to the last one's end, in processes that have imported everything.

    accumulate: backward passes over the chunks one after the other, and not one over all of them.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder / 'plain.db'}"
    optuna.create_study(storage=storage, study_name="plain", direction="maximize")
    context = multiprocessing.get_context("fork")
    started = time.perf_counter()
    workers = [
        context.Process(target=_work, args=(folder, storage, trials // processes, epochs, accumulate, device))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    return time.perf_counter() - started


def _work(folder: Path, storage: str, trials: int, epochs: int, accumulate: bool, device: str) -> None:
    with open(folder / "output.log", "a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(1)
    study = optuna.load_study(storage=storage, study_name="plain", sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: _train(trial, folder, epochs, accumulate, device), n_trials=trials)


def _train(trial: optuna.Trial, folder: Path, epochs: int, accumulate: bool, device: str) -> float:
    trial.suggest_categorical("replicate", list(range(100)))
    L.seed_everything(trial.number, verbose=False)
    parts = CHUNKS if accumulate else 1
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.3
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, val, test = order[:256].repeat(2), order[256:975], order[975:1334]
    loaders = [
        DataLoader(TensorDataset(images[part], labels[part]), batch_size=size, shuffle=shuffle, drop_last=shuffle)
        for part, size, shuffle in ((train, BATCH // parts, True), (val, 256, False), (test, 256, False))
    ]
    module = Classifier(0.05, epochs, 1 if accumulate else CHUNKS)
    trainer = L.Trainer(
        max_epochs=epochs, accumulate_grad_batches=parts, accelerator="cpu" if device == "cpu" else "gpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False, logger=CSVLogger(folder, name=f"trial{trial.number}"),
    )  # fmt: skip
    trainer.fit(module, loaders[0], loaders[1])
    score = float(trainer.callback_metrics["val_accuracy"])
    trainer.test(module, loaders[2], verbose=False)
    return score
