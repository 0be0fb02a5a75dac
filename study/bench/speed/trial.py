"""The harness against a bare loop that does the same training, the fixed cost of a trial, and two workers against one.

All with the data and networks of the laptop scale: digits, small ResNets, here with 8 chunks of B samples.
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
from study.config.schema import RunConfig, StudyConfig
from study.data.in_memory import InMemoryEvaluationLoader, InMemoryTrainingLoader
from study.data.load import load_splits
from study.models import build_network
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import StudyFolder, TrialFolder
from study.record.wandb_server import Mode
from study.sweep.driver import Driver
from study.sweep.executors.local import LocalExecutor
from study.tasks.optimizers import build_optimizer, build_schedule
from study.training.trial import train

EIGHT_CHUNKS = ("fixed_gradient_batch=null", "train_samples=null", "validation_fraction=0.2", "epoch_steps=null")
"""One pass over all training images is an epoch, and the gradient batch is 8 B."""
HARNESS_BAR, FIXED_BAR, WORKERS_BAR = 1.10, 0.5, 0.6


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Trains the same networks both ways, then runs trials in a pool of worker processes."""
    threads = threads or 1  # the default of a study
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
    """Training in plain PyTorch, with the network, batches, loss, optimizer and schedule of a trial."""

    def __init__(self, trial: PlannedTrial, device: torch.device) -> None:
        config, seed = trial.config, trial.seeds["data"]
        splits = load_splits(config, trial.seeds["split"]).to(device)
        self.network = build_network(config, trial.seeds["init"]).to(device)
        self.batches = InMemoryTrainingLoader(
            splits.train, config.gradient_batch, augmentation=config.augmentation, seed=seed, steps=config.epoch_steps
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


class EpochPairTimer(L.Callback):
    """Runs an epoch of the bare loop before each epoch of the harness, so that both run under the same load.

    seconds: of each epoch of the bare loop. ratios: harness / bare loop, for all epochs but the last, which is followed
    by the end of the trial, a fixed cost.
    """

    def __init__(self, bare: BareLoop) -> None:
        self.bare = bare
        self.ratios: list[float] = []
        self.seconds: list[float] = []
        self.started: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.started is not None:
            self.ratios.append((_read_clock() - self.started) / self.seconds[-1])
        # The harness asks for deterministic algorithms, which are slower; the bare loop runs without them.
        torch.use_deterministic_algorithms(False)
        bare_started = _read_clock()
        self.bare.run_epoch(trainer.current_epoch)
        self.started = _read_clock()
        self.seconds.append(self.started - bare_started)
        torch.use_deterministic_algorithms(True, warn_only=True)


def train_both_ways(trial: PlannedTrial, folder: Path, threads: int, device: str) -> tuple[EpochPairTimer, bool]:
    """Trains a trial with the harness and with the bare loop; the times, and whether the final weights are equal."""
    record = TrialFolder(folder)
    timer = EpochPairTimer(BareLoop(trial, torch.device(device)))
    train(make_job(trial, folder, threads=threads, device=device), record, callbacks=[timer])
    trained = torch.load(record.last_checkpoint, weights_only=True)["state_dict"]
    bare = timer.bare.network.state_dict()
    return timer, all(torch.equal(trained[f"network.{name}"].cpu(), bare[name].cpu()) for name in bare)


def _measure_overhead(result: Result, scratch: Path, quick: bool, threads: int, device: str) -> None:
    overrides = ["epochs=3", "train_samples=128", "depth=8"] if quick else ["epochs=17"]
    study = _load_laptop_study("norm=[sn, bn]", "initialization=he_normal", "replicates=1", *overrides)
    bare, harness, all_equal = 0.0, 0.0, True
    for trial in plan_trials(study):
        timer, equal = train_both_ways(trial, scratch / "both-ways" / trial.key, threads, device)
        config, ratio, epoch = trial.config, statistics.median(timer.ratios), statistics.median(timer.seconds)
        bare, harness, all_equal = bare + epoch, harness + ratio * epoch, all_equal and equal
        result.rows.append(_build_row(
            f"harness / bare loop: {config.norm}, ResNet-{config.depth}, B = {config.batch_size}",
            f"{1e3 * epoch / trial.steps_per_epoch:.1f} ms per step of the bare loop"
            + ("" if equal else "; THE FINAL WEIGHTS DIFFER"),
            ratio,
        ))  # fmt: skip
    result.figures.append(Figure("the very same weights", float(all_equal), 1.0, at_least=True))
    result.figures.append(Figure("harness / bare loop, the time of all cells", harness / bare, HARNESS_BAR))


# --------------------------------------------------------------------------------------------- trials in a pool


def _measure_fixed_cost(result: Result, scratch: Path, quick: bool, threads: int, device: str) -> None:
    """The time from submitting a trial to the end of its process, without its epochs.

    It is the intercept of time over epochs, from a trial of few and a trial of many epochs.
    """
    few, many = 1, 3 if quick else 5
    rounds = 1 if quick else 5
    executor = LocalExecutor(1, [device], threads)
    overrides = ["norm=sn", "depth=8", "batch_size=16", *(["train_samples=128"] if quick else [])]
    trials = {
        epochs: plan_trials(_load_laptop_study(f"epochs={epochs}", *overrides))[0] for epochs in (few, many)
    }  # fmt: skip
    modes: tuple[Mode, ...] = ("offline", "disabled")
    _warm_up(executor, scratch / "warm-up")
    costs: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for turn in range(rounds):
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
        cost = statistics.median(costs[mode])
        result.rows.append(_build_row(f"fixed cost of a trial in a warm pool, W&B {mode}", "seconds", cost))
        result.figures.append(Figure(f"fixed cost of a trial, W&B {mode}, seconds", cost, FIXED_BAR))


def _warm_up(executor: LocalExecutor, folder: Path) -> None:
    """Starts the pool of an executor, by a trial of one step."""
    study = _load_laptop_study("norm=bn", "depth=8", "batch_size=2", "epochs=1", "epoch_steps=1", "warmup_epochs=0")
    _run_trial(executor, make_job(plan_trials(study)[0], folder, threads=executor.threads, mode="disabled"))


def _run_trial(executor: LocalExecutor, job: Job) -> float:
    """Seconds from submitting a job to the end of its process."""
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
        result.notes.append("two workers against one: not measured, because this machine has one core")
        return
    overrides, rounds = (
        (["epochs=1", "replicates=2", "train_samples=128", "tracking.mode=disabled"], 1)
        if quick
        else (["epochs=4", "replicates=4"], 3)
    )
    study = _load_laptop_study("norm=sn", "depth=8", "batch_size=16", "initialization=he_normal", *overrides)
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            executor = LocalExecutor(workers, [device], threads)
            times[workers].append(run_study(study, scratch / f"workers-{workers}-{turn}", executor))
    ratio = statistics.median(two / one for one, two in zip(times[1], times[2], strict=True))
    name = f"two workers / one: {study.replicates} trials"
    result.rows.append(_build_row(name, f"{statistics.median(times[1]):.1f} s with one", ratio))
    result.figures.append(Figure("wall time, two workers / one", ratio, WORKERS_BAR))


def run_study(study: StudyConfig, folder: Path, executor: LocalExecutor) -> float:
    """Seconds of a run of the driver, without the start of the executor's pool."""
    _warm_up(executor, folder.with_name(f"{folder.name}-warm-up"))
    with open(os.devnull, "w") as devnull:
        driver = Driver(
            study=study, folder=StudyFolder(folder), executor=executor,
            environment={"host": platform.node()}, console=Console(file=devnull), command_for=lambda trial: "",
        )  # fmt: skip
        started = time.perf_counter()
        failed = driver.run().failed
    assert not failed, failed
    return time.perf_counter() - started


def make_job(trial: PlannedTrial, folder: Path, *, threads: int, device: str = "cpu", mode: Mode = "offline") -> Job:
    """A job like those that the driver makes."""
    return Job(
        trial=trial, folder=folder, study="bench", run=RunConfig(), wandb_mode=mode,
        environment={"host": platform.node()}, command="", devices=(device,), threads=threads,
    )  # fmt: skip


def _load_laptop_study(*overrides: str) -> StudyConfig:
    return load_study("depth_vs_batch", "laptop", ["tracking.mode=offline", "run.fuse=1", *EIGHT_CHUNKS, *overrides])


def _build_row(name: str, detail: str, value: float) -> dict[str, Any]:
    return {"measured": name, "of": detail, "value": value}


def _read_clock() -> float:
    """Seconds, after all launched kernels have finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
