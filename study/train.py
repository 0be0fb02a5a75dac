"""One trial: network + data + callbacks + Trainer -> record."""

from __future__ import annotations

import logging
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from filelock import Timeout
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from study.data.load import load_splits
from study.data.memory import EvaluationLoader, TrainingLoader
from study.job import Job
from study.models import build_network, trace_geometry
from study.norms.fused import form
from study.plan import PlannedTrial
from study.record.checkpoint import AtomicCheckpointIO, newest_checkpoint
from study.record.files import SCHEMA, TrialFolder, file_facts, set_aside, write_json, write_yaml
from study.record.recorder import Recorder, finite
from study.record.tracking import Tracker, prepare
from study.tasks.classification import Classification, DivergedError

LOCK_SECONDS = 1.0  # longer than `status` holds a lock to see whether it is free
_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def run_job(job: Job) -> None:
    """Trains a trial unless its record is there, and leaves a result or the reason why there is none.

    What happened is read from the record, never from an exit code or a return value.
    """
    folder = TrialFolder(job.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with folder.lock().acquire(timeout=LOCK_SECONDS):
            if folder.read_result() is None or folder.damaged_files():
                _attempt(job, folder)
    except Timeout:
        pass  # another process trains this trial: its record will come


def _attempt(job: Job, folder: TrialFolder) -> None:
    attempt, failures = folder.attempts()
    attempt += 1
    for leftover in folder.path.glob("*.tmp*"):  # half-written files of a process that was killed
        leftover.unlink()
    state = {"attempt": attempt, "pid": os.getpid(), "host": platform.node(), "job": job.place, "started": time.time()}
    write_json(folder.state, {"state": "running", "failures": failures, **state})
    try:
        train(job, folder, attempt)
    except Exception as error:  # whatever a trial dies of is its reason, and must not take the sweep along
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        failed = {"state": "failed", "failures": failures + 1, "reason": reason, "traceback": traceback.format_exc()}
        write_json(folder.state, {**failed, **state})


def train(job: Job, folder: TrialFolder, attempt: int = 1, callbacks: Sequence[L.Callback] = ()) -> None:
    """Trains one trial from its newest checkpoint, or from the start, to its result. `callbacks` may look on."""
    _be_quiet()
    torch.set_num_threads(job.threads)
    # With deterministic algorithms torch fills new memory, a tenth of a step, so that reading it unwritten would show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    started = time.perf_counter()
    prepare(job.wandb_mode)
    trial, config = job.trial, job.trial.config
    notes: list[str] = []  # what a user should know of, shown by the driver
    _set_aside_damage(folder, notes.append)
    checkpoint = newest_checkpoint(folder, notes.append)

    device = torch.device(job.devices[0])
    splits = load_splits(config, trial.seeds["split"], job.run.data_root).to(device)
    batches = TrainingLoader(
        splits.train, config.gradient_batch, augmentation=config.augmentation, seed=trial.seeds["data"]
    )
    network = build_network(config, trial.seeds["init"])
    layers = trace_geometry(network)
    description = _describe(trial, job, network, len(layers))
    write_yaml(folder.trial, description)
    write_json(folder.environment, {
        **job.environment, "device": _device_name(device), "threads": job.threads,
        "norm_kernels": form(device.type, sync=config.sync_statistics and "bn" in trial.pool),
    })  # fmt: skip

    module = Classification(network, config, steps_per_epoch=len(batches), seed=trial.seeds["data"])
    if config.bn_statistics == "batch":
        module.recalibration_batches = TrainingLoader(
            splits.train, config.gradient_batch, augmentation="none", seed=trial.seeds["data"]
        )
    tracker = Tracker(
        folder, trial, study=job.study, mode=job.wandb_mode, tracking=job.tracking,
        config={**description, "environment": job.environment},
    )  # fmt: skip
    recorder = Recorder(folder, trial, layers, tracker, job.run.checkpoint_seconds)
    trainer = _build_trainer(config.epochs, device, _PRECISION[config.precision], recorder, callbacks)
    status, reason, metrics = "done", None, {}
    try:
        trainer.fit(module, batches, EvaluationLoader(splits.validation), ckpt_path=checkpoint)
        module.check_weights()
        trainer.test(module, [EvaluationLoader(splits.train), EvaluationLoader(splits.test)], verbose=False)
        metrics = {name: finite(value) for name, value in module.epoch_metrics.items()}
        if recorder.pruned:
            status, reason = "pruned", f"by the search, after epoch {len(recorder.history) - 1}"
    except DivergedError as error:
        status, reason = "diverged", str(error)
    metrics = _final_metrics(recorder.last_metrics(), metrics, diverged=status == "diverged")
    recorder.write_switch_weights()
    tracker.log_switch_weights(recorder.history[-1], layers, trial.pool)
    tracker.finish(status, metrics)
    _write_result(folder, trial, description, {
        "status": status, "reason": reason, "epochs": len(recorder.history) - 1, "steps": recorder.steps[-1],
        "seconds": round(time.perf_counter() - started, 3), "attempts": attempt, "metrics": metrics,
        "notes": notes,
    })  # fmt: skip


def _build_trainer(
    epochs: int, device: torch.device, precision: str, recorder: Recorder, callbacks: Sequence[L.Callback]
) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        callbacks=[*callbacks, recorder],
        # The plain environment: under Slurm, Lightning would load another trial's checkpoint.
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=recorder.folder.path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        inference_mode=False,  # batch statistics are re-estimated in evaluation, in buffers that training goes on with
        deterministic="warn",
    )


def _describe(trial: PlannedTrial, job: Job, network: torch.nn.Module, norm_layers: int) -> dict[str, Any]:
    """trial.yaml: what was trained, and the command that does it again."""
    return {
        "trial_id": trial.trial_id,
        "replicate": trial.replicate,
        "study": job.study,
        "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"),
        "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch,
        "device_batch": trial.device_batch,
        "pool": list(trial.pool),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "norm_layers": norm_layers,
        "seeds": trial.seeds,
        "command": job.command,
    }


def _final_metrics(
    last: dict[str, float | None], tested: dict[str, float | None], *, diverged: bool
) -> dict[str, float | None]:
    """Metrics of the last epoch and of the splits evaluated after it; all null for a diverged trial."""
    names = ("val_accuracy", "val_loss", "train_accuracy", "train_loss", "fit_accuracy", "fit_loss", "test_accuracy",
             "test_loss")  # fmt: skip
    found = {} if diverged else {**last, **tested}
    metrics = {name: found.get(name) for name in names}
    fit, validation = metrics["fit_accuracy"], metrics["val_accuracy"]
    gap = fit - validation if fit is not None and validation is not None else None
    switches = {name: value for name, value in found.items() if name.startswith("switch/")}
    return {**metrics, "generalization_gap": gap, **switches}


def _write_result(folder: TrialFolder, trial: PlannedTrial, description: dict[str, Any], facts: dict[str, Any]) -> None:
    """The last file of a record: it vouches for the others."""
    repeated = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "device_batch", "pool", "parameters",
                "norm_layers")  # fmt: skip
    files = (folder.trial, folder.environment, folder.metrics, folder.switch_weights)
    write_json(folder.result, {
        "schema": SCHEMA,
        **{key: description[key] for key in repeated},
        **facts,
        "files": {file.name: file_facts(file) for file in files},
    })  # fmt: skip


def _set_aside_damage(folder: TrialFolder, warn: Callable[[str], None]) -> None:
    """A result that no longer vouches for its files is no result: named, set aside, made anew from the checkpoint."""
    for name in folder.damaged_files():
        file = folder.path / name
        if file.exists():
            warn(f"{file}: damaged, set aside as {set_aside(file).name}")
    if folder.result.exists():
        set_aside(folder.result)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _be_quiet() -> None:
    """Lightning's tips and warnings are for people who wrote the loop themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
