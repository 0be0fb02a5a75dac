"""The harness against a bare loop that does the same training, the fixed cost of a trial, and two workers against one.

At the laptop scale: digits, small ResNets, 8 chunks of B.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from study.bench.result import Figure, Result
from study.config.schema import RunConfig, StudyConfig, TrackingConfig
from study.data.in_memory import InMemoryEvaluationLoader, InMemoryTrainingLoader
from study.data.load import load_splits
from study.models import build_network
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import StudyFolder, TrialFolder
from study.record.wandb_mode import Mode
from study.sweep.driver import Driver
from study.sweep.executors.local import LocalExecutor
from study.tasks.optimizers import build_optimizer, build_schedule
from study.training.trial import train

HARNESS_BAR, FIXED_BAR, WORKERS_BAR = 1.10, 0.5, 0.6


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Trains the same networks both ways, then trials in a warm pool."""
    threads = threads or 1  # as a study runs its trials
    torch.set_num_threads(threads)
    result = Result("trial")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _measure_overhead(result, folder, quick, threads, device)
        _measure_fixed_cost(result, folder, quick, threads, device)
        _measure_workers(result, folder, quick, threads, device)
    return result


# -------------------------------------------------------------------------------- the harness against a bare loop


class BareLoop:
    """A trial's training in plain PyTorch: the same network, batches, loss, solver and schedule, and nothing else."""

    def __init__(self, trial: PlannedTrial, device: torch.device) -> None:
        config, seed = trial.config, trial.seeds["data"]
        splits = load_splits(config, trial.seeds["split"]).to(device)
        self.network = build_network(config, trial.seeds["init"]).to(device)
        self.batches = InMemoryTrainingLoader(
            splits.train, config.gradient_batch, augmentation=config.augmentation, seed=seed
        )
        self.validation = InMemoryEvaluationLoader(splits.validation)
        self.optimizer = build_optimizer(self.network, config)
        self.schedule = build_schedule(self.optimizer, config, len(self.batches))

    def run_epoch(self, epoch: int) -> None:
        """Trains an epoch and evaluates the validation split."""
        self.batches.set_epoch(epoch)
        self.network.train()
        for images, labels in self.batches:
            self.optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(self.network(images), labels))
            self.optimizer.step()
            self.schedule.step()
        self.network.eval()
        with torch.no_grad():
            for images, labels in self.validation:
                cross_entropy(self.network(images), labels)


class Race(L.Callback):
    """Runs an epoch of the bare loop before each of the harness, so that both see the same load of the machine."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.ratios: list[float] = []
        self.seconds: list[float] = []
        self.started: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish_epoch()
        torch.use_deterministic_algorithms(False)  # what the harness asks for is its own cost
        started = _now()
        self.bare.run_epoch(trainer.current_epoch)
        self.started = _now()
        self.seconds.append(self.started - started)
        torch.use_deterministic_algorithms(True, warn_only=True)

    def _finish_epoch(self) -> None:
        if self.started is not None:
            self.ratios.append((_now() - self.started) / self.seconds[-1])

    # The last epoch is left out: what follows it is the fixed cost of a trial.


def race(trial: PlannedTrial, folder: Path, threads: int, device: str) -> tuple[Race, bool]:
    """Trains a trial both ways; whether they end with the very same weights."""
    record = TrialFolder(folder)
    callback = Race(BareLoop(trial, torch.device(device)))
    train(make_job(trial, folder, threads=threads, device=device), record, callbacks=[callback])
    trained = torch.load(record.last_checkpoint, weights_only=True)["state_dict"]
    bare = callback.bare.network.state_dict()
    return callback, all(torch.equal(trained[f"network.{name}"].cpu(), bare[name].cpu()) for name in bare)


def _measure_overhead(result: Result, scratch: Path, quick: bool, threads: int, device: str) -> None:
    overrides = ["epochs=3", "train_samples=128", "depth=8"] if quick else ["epochs=17"]
    study = _laptop("norm=[sn, bn]", "initialization=he_normal", "replicates=1", *overrides)
    bare, harness, all_same = 0.0, 0.0, True
    for trial in plan_trials(study):
        pair, same = race(trial, scratch / "race" / trial.key, threads, device)
        config, ratio, epoch = trial.config, statistics.median(pair.ratios), statistics.median(pair.seconds)
        bare, harness, all_same = bare + epoch, harness + ratio * epoch, all_same and same
        result.rows.append(_row(
            f"harness / bare loop: {config.norm}, ResNet-{config.depth}, B = {config.batch_size}",
            f"{1e3 * epoch / trial.steps_per_epoch:.1f} ms a step, bare" + ("" if same else "; NOT THE SAME WEIGHTS"),
            ratio,
        ))  # fmt: skip
    result.figures.append(Figure("the very same weights", float(all_same), 1.0, at_least=True))
    result.figures.append(Figure("harness / bare loop, the time of all cells", harness / bare, HARNESS_BAR))


# --------------------------------------------------------------------------------------------- trials in a pool


def _measure_fixed_cost(result: Result, scratch: Path, quick: bool, threads: int, device: str) -> None:
    """From submitting a trial to the end of its process, less its epochs: from trials of few and of many."""
    few, many = 1, 3 if quick else 5
    rounds = 1 if quick else 5
    executor = LocalExecutor(1, [device], threads)
    samples = ["train_samples=256"] if quick else []
    trials = {
        epochs: plan_trials(_laptop("norm=sn", "depth=8", "batch_size=16", f"epochs={epochs}", *samples))[0]
        for epochs in (few, many)
    }
    modes: tuple[Mode, ...] = ("offline", "disabled")
    costs: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for turn in range(rounds + 1):
        for mode in modes:
            short, long = (
                _run_trial(executor, make_job(
                    trials[epochs], scratch / f"fixed-{mode}-{epochs}-{turn}", threads=threads, mode=mode
                ))
                for epochs in (few, many)
            )  # fmt: skip
            costs[mode].append(short - (long - short) * few / (many - few))
    executor.close()
    for mode in modes:
        cost = statistics.median(costs[mode][1:])  # the first warms the pool up
        result.rows.append(_row(f"fixed cost of a trial in a warm pool, W&B {mode}", "seconds", cost))
        result.figures.append(Figure(f"fixed cost of a trial, W&B {mode}, seconds", cost, FIXED_BAR))


def _run_trial(executor: LocalExecutor, job: Job) -> float:
    started = time.perf_counter()
    executor.submit([job])
    while not executor.wait(60.0):
        pass
    seconds = time.perf_counter() - started
    assert TrialFolder(job.folder).read_result() is not None, TrialFolder(job.folder).status()
    return seconds


def _measure_workers(result: Result, scratch: Path, quick: bool, threads: int, device: str) -> None:
    cores = os.cpu_count() or 1
    if cores < 2:
        result.notes.append("two workers against one: left out, this machine has one core")
        return
    epochs, rounds = (1, 1) if quick else (4, 3)
    replicates = 2 if quick else 4
    study = _laptop(
        "norm=sn", "depth=8", "batch_size=16", "initialization=he_normal", f"epochs={epochs}",
        f"replicates={replicates}",
    )  # fmt: skip
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            times[workers].append(_run_study(study, scratch / f"workers-{workers}-{turn}", workers, threads, device))
    ratio = statistics.median(two / one for one, two in zip(times[1], times[2], strict=True))
    what = f"two workers / one: {study.replicates} trials"
    result.rows.append(_row(what, f"{statistics.median(times[1]):.1f} s with one", ratio))
    result.figures.append(Figure("wall time, two workers / one", ratio, WORKERS_BAR))


def _run_study(study: StudyConfig, folder: Path, workers: int, threads: int, device: str) -> float:
    with open(os.devnull, "w") as nowhere:
        driver = Driver(
            study=study, folder=StudyFolder(folder), executor=LocalExecutor(workers, [device], threads),
            environment={"host": platform.node()}, console=Console(file=nowhere), command_for=lambda trial: "",
        )  # fmt: skip
        started = time.perf_counter()
        outcome = driver.run()
    assert not outcome.failed, outcome.failed
    return time.perf_counter() - started


def make_job(trial: PlannedTrial, folder: Path, *, threads: int, device: str = "cpu", mode: Mode = "offline") -> Job:
    """A job as the driver makes it."""
    return Job(
        trial=trial, folder=folder, study="bench", run=RunConfig(), tracking=TrackingConfig(mode=mode),
        wandb_mode=mode, environment={"host": platform.node()}, command="", devices=(device,), threads=threads,
    )  # fmt: skip


def _laptop(*overrides: str) -> StudyConfig:
    return load_study("depth_vs_batch", "laptop", ["tracking.mode=offline", *overrides])


def _row(what: str, detail: str, value: float) -> dict[str, Any]:
    return {"measured": what, "of": detail, "value": value}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
