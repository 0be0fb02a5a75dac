"""One trial: network + data + callbacks + Trainer -> record."""

from __future__ import annotations

import logging
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from filelock import Timeout
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from study.config.errors import FULL_DISK, NO_SPACE
from study.data.batches import Data, SplitName
from study.data.load import load_data
from study.models import build_network, count_norms, trace_geometry
from study.norms.kernels.dispatch import kernel_kind
from study.plan.job import Job
from study.plan.trials import PlannedTrial
from study.record.checkpoint import AtomicCheckpointIO, newest_checkpoint, step_of
from study.record.environment import describe_machine
from study.record.io import append_line, quarantine, read_json, write_json, write_yaml
from study.record.layout import TrialFolder, write_result
from study.record.switch_weights import select_switch_layers
from study.record.wandb_run import Tracker, finish_open_run, start_wandb_service
from study.tasks import TASKS, DivergedError
from study.tasks.base import EVALUATIONS
from study.tasks.distributed import GRACE_SECONDS, ProcessGroup, launch_ranks, redirect_output
from study.training.preemption import PreemptedError, StopRequest, handle_signals
from study.training.recorder import FollowerRankCallback, Recorder, nan_to_none
from study.training.warm_start import FreezeSwitchWeights, start_network

LOCK_SECONDS = 1.0  # longer than `status` holds a lock to see whether it is free
NOTED_LINES = 20
SPLITS: tuple[SplitName, ...] = ("validation", "train", "test")
_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def run_job(job: Job, leave: StopRequest | None = None) -> None:
    """Trains a trial unless its record is there, and leaves a result or the reason why there is none.

    What happened is read from the record, never from an exit code or a return value. SIGTERM, SIGUSR1 and SIGUSR2 ask
    the trial to leave, in the main thread of its process: it writes a checkpoint after the step it is at, and this
    returns. A process that trains several, or takes long to import this, listens itself and hands its `leave` in.
    """
    folder = TrialFolder(job.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with nullcontext(leave) if leave else handle_signals() as leave, folder.lock().acquire(timeout=LOCK_SECONDS):
            if folder.read_result() is None or folder.damaged_files():
                _attempt(job, folder, leave)
    except Timeout:
        pass  # another process trains this trial: its record will come


def _attempt(job: Job, folder: TrialFolder, leave: StopRequest) -> None:
    attempt, failures = folder.attempts()
    attempt += 1
    step: int | None
    for leftover in folder.path.glob("*.tmp*"):  # half-written files of a process that was killed
        leftover.unlink()
    state = {"attempt": attempt, "pid": os.getpid(), "host": platform.node(), "job": job.place, "started": time.time()}
    try:
        write_json(folder.state, {"state": "running", "failures": failures, **state})
        how, step = train(job, folder, attempt, leave=leave)
    except Exception as error:  # whatever a trial dies of is its reason, and must not take the sweep along
        how, step = _record_failure(folder, error), getattr(error, "step", None)
    with suppress(OSError):
        append_line(folder.attempts_log, {"attempt": attempt, "time": time.time(), "step": step, "how": how})
    finish_open_run()


def _record_failure(folder: TrialFolder, error: Exception) -> str:
    """Writes why an attempt has no result; returns the state it leaves. Leaving, and a full disk, are no failure."""
    state = read_json(folder.state) or {}
    if isinstance(error, PreemptedError):
        state |= {"state": "interrupted", "reason": str(error)}
    elif isinstance(error, OSError) and error.errno in FULL_DISK:
        state |= {"state": "interrupted", "reason": f"{NO_SPACE} {folder.path}"}
    else:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        trace = "".join(traceback.format_exception(error))
        state |= {"state": "failed", "failures": folder.attempts()[1] + 1, "reason": reason, "traceback": trace}
    with suppress(OSError):  # the disk is still full: the next attempt finds the state of one that was killed
        write_json(folder.state, state)
    return str(state["state"])


def train(
    job: Job,
    folder: TrialFolder,
    attempt: int = 1,
    callbacks: Sequence[L.Callback] = (),
    leave: StopRequest | None = None,
) -> tuple[str, int]:
    """Trains one trial from its newest checkpoint, or from the start, to its result: its status and its steps.

    `callbacks` may look on. Raises `PreemptedError` when it is asked to `leave`.
    """
    started = time.perf_counter()
    _set_up_process(job)
    start_wandb_service(job.wandb_mode)
    leave = leave or StopRequest()
    trial = job.trial
    notes: list[str] = []  # what a user should know of, shown by the driver
    _quarantine_damage(folder, notes.append)
    # A trial of no epochs has a checkpoint for others to start from, and begins anew itself.
    checkpoint = newest_checkpoint(folder, notes.append) if trial.config.epochs else None
    step = 0 if checkpoint is None else step_of(checkpoint)
    append_line(folder.attempts_log, {
        "attempt": attempt, "pid": os.getpid(), "host": platform.node(), "job": job.place, "time": time.time(),
        "step": step, "devices": job.devices,
    })  # fmt: skip

    data = load_data(trial.config, trial.seeds, job.run.data_root, job.run.loader_workers)  # downloads, before others
    network = _build_network(job)
    layers = trace_geometry(network)
    description = _describe(trial, job, network, len(layers))
    layers = select_switch_layers(network, layers)
    write_yaml(folder.trial, description)
    tracker = Tracker(
        folder, trial, study=job.study, mode=job.wandb_mode, tracking=job.tracking,
        config={**description, "environment": job.environment},
    )  # fmt: skip
    if leave.signal:
        raise PreemptedError(leave.signal, step)
    status, reason, metrics = "done", None, {}
    with launch_ranks(job.devices, train_worker_rank, job, checkpoint) as team:
        write_json(folder.environment, {**_describe_environment(job), "wandb": tracker.where})
        recorder = Recorder(folder, trial, layers, tracker, job.run.checkpoint_seconds, leave, team)
        try:
            tested = _fit_and_test(job, team, data, network, [*callbacks, recorder], checkpoint)
            metrics = {name: nan_to_none(value) for name, value in tested.items()}
            if recorder.pruned:
                status, reason = "pruned", f"by the search, after epoch {len(recorder.history) - 1}"
        except DivergedError as error:
            status, reason = "diverged", str(error)
    main_metric = TASKS[trial.config.task].main_metric
    metrics = _final_metrics(recorder.last_metrics(), metrics, main_metric, diverged=status == "diverged")
    recorder.write_switch_weights()
    tracker.log_switch_weights(recorder.history[-1], layers, trial.pool)
    tracker.finish(status, metrics)
    write_result(folder, description, {
        "status": status, "reason": reason, "epochs": len(recorder.history) - 1, "steps": recorder.steps[-1],
        "seconds": round(time.perf_counter() - started, 3), "attempts": attempt, "metrics": metrics,
        "set_aside": len(data.set_aside), "notes": [*notes, *_shorten(data.set_aside)],
    })  # fmt: skip
    return status, recorder.steps[-1]


def train_worker_rank(team: ProcessGroup, job: Job, checkpoint: Path | None) -> None:
    """What the other devices of a trial do: all of the training, and none of the record."""
    folder = TrialFolder(job.folder)
    redirect_output(folder.log)
    _set_up_process(job)
    try:
        data = load_data(job.trial.config, job.trial.seeds, job.run.data_root, job.run.loader_workers)
        _fit_and_test(job, team, data, _build_network(job), [FollowerRankCallback(team)], checkpoint)
    except (DivergedError, PreemptedError):
        pass  # the recorder's business
    except Exception as error:
        if isinstance(error, RuntimeError):  # perhaps only because another rank is gone: then this process is, too
            time.sleep(GRACE_SECONDS)
        _record_failure(folder, error)
        raise


def _fit_and_test(
    job: Job,
    team: ProcessGroup,
    data: Data,
    network: torch.nn.Module,
    callbacks: list[L.Callback],
    checkpoint: Path | None,
) -> dict[str, float]:
    """Trains `network` on this process's part of every batch: the metrics of the last epoch and of the test."""
    config, seed = job.trial.config, job.trial.seeds["data"]
    device = torch.device(job.devices[team.rank])
    data = data.to(device)
    training = data.training(config.augmentation, team.part)
    module = TASKS[config.task](
        network, config, steps_per_epoch=len(training), seed=seed, team=team, accumulate=_parts(job)
    )
    if config.bn_statistics == "batch" or config.start_rule != "scratch":
        module.recalibration_batches = data.training("none", team.part)
    validation, fitted, test = (data.evaluation(split, team.part) for split in SPLITS)
    if config.start_rule == "frozen" and config.start_epoch:
        callbacks = [FreezeSwitchWeights(network, config.start_epoch), *callbacks]
    trainer = _build_trainer(config.epochs, device, _PRECISION[config.precision], callbacks)
    trainer.fit(module, training, validation, ckpt_path=checkpoint)
    if not config.epochs:
        trainer.validate(module, validation, verbose=False)
    module.check_weights()
    trainer.test(module, [fitted, test], verbose=False)
    return module.epoch_metrics


def _build_network(job: Job) -> torch.nn.Module:
    """The network of one device, as it starts: it sees one part of a gradient batch at a time.

    A trial that goes on from its checkpoint starts, too: what its rule fixes is then no parameter of the solver.
    """
    config, seed = job.trial.config, job.trial.seeds["init"]
    network = build_network(config, seed, ranks=len(job.devices) * _parts(job))
    if job.start is not None:
        start_network(network, config, seed, job.start)
    return network


def _parts(job: Job) -> int:
    """How many parts a device takes its share of a gradient batch in."""
    return job.trial.gradient_batch // (len(job.devices) * job.trial.device_batch)


def _build_trainer(epochs: int, device: torch.device, precision: str, callbacks: list[L.Callback]) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=os.devnull,  # under Slurm, Lightning would load whatever checkpoint it finds in a folder
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,  # batch statistics are re-estimated in evaluation, in buffers that training goes on with
        deterministic="warn",
    )
    # Lightning's own handlers would take signals from ours, and end the process wherever it is.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _describe(trial: PlannedTrial, job: Job, network: torch.nn.Module, norm_layers: int) -> dict[str, Any]:
    """trial.yaml: what was trained, and the command that does it again."""
    return {
        "trial_id": trial.trial_id,
        "replicate": trial.replicate,
        "study": job.study,
        "levels": trial.levels,
        "start": None if job.start is None else trial.waits_for or str(job.start),
        "config": trial.config.model_dump(mode="json"),
        "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch,
        "device_batch": trial.device_batch,
        "devices": len(job.devices),
        "accumulate": _parts(job),
        "pool": list(trial.pool),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "norm_layers": norm_layers,
        "norm_census": count_norms(network),
        "seeds": trial.seeds,
        "command": job.command,
    }


def _final_metrics(
    last: dict[str, float | None], tested: dict[str, float | None], main_metric: str, *, diverged: bool
) -> dict[str, float | None]:
    """Metrics of the last epoch and of the splits evaluated after it; all null for a diverged trial."""
    names = [f"{split}_{name}" for split in EVALUATIONS for name in ("score", main_metric, "loss")]
    found = {**dict.fromkeys([*names, "train_loss"]), **({} if diverged else {**last, **tested})}
    fit, validation = found.get("fit_score"), found.get("val_score")
    gap = fit - validation if fit is not None and validation is not None else None
    return {**found, "generalization_gap": gap}


def _shorten(lines: Sequence[str]) -> list[str]:
    """What of the data was set aside, for people to read: with a count where there is much."""
    rest = len(lines) - NOTED_LINES
    return [f"set aside: {line}" for line in lines[:NOTED_LINES]] + ([f"set aside: {rest} more"] if rest > 0 else [])


def _quarantine_damage(folder: TrialFolder, warn: Callable[[str], None]) -> None:
    """A result that no longer vouches for its files is no result: named, set aside, made anew from the checkpoint."""
    for name in folder.damaged_files():
        file = folder.path / name
        if file.exists():
            warn(f"{file}: damaged, set aside as {quarantine(file).name}")
    if folder.result.exists():
        quarantine(folder.result)


def _describe_environment(job: Job) -> dict[str, Any]:
    names = [torch.cuda.get_device_name(device) if device.startswith("cuda") else device for device in job.devices]
    sync = job.trial.config.sync_statistics and "bn" in job.trial.pool
    kernels = kernel_kind(torch.device(job.devices[0]).type, sync=sync)
    elsewhere = platform.node() != job.environment["host"]
    environment = {**job.environment, **(describe_machine() if elsewhere else {})}
    return {**environment, "device": ", ".join(names), "threads": job.threads, "norm_kernels": kernels}


def _set_up_process(job: Job) -> None:
    torch.set_num_threads(job.threads)
    # With deterministic algorithms torch fills new memory, a tenth of a step, so that reading it unwritten would show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Lightning's tips and warnings are for people who wrote the loop themselves.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
