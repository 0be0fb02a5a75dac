"""Trains one trial: network + data + callbacks + Trainer -> record."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as L
import torch
from filelock import Timeout
from torch import nn

from study.config.errors import UserError
from study.data.load import load_data
from study.data.loaders import SplitName, TrialData, WholeEpochs
from study.models import build_network, trace_geometry
from study.plan.job import Job
from study.record.checkpoint import find_newest_checkpoint, read_step
from study.record.io import nan_to_none, write_json, write_yaml
from study.record.layout import LOCK_SECONDS, TrialFolder
from study.record.outcome import write_result
from study.record.switch_weights import select_switch_layers
from study.record.wandb_names import build_run_config
from study.record.wandb_run import Tracker, start_wandb_service
from study.record.wandb_status import describe_end
from study.tasks import TASKS, DivergedError
from study.tasks.base import OWN_PASSES, Passes
from study.tasks.distributed import (
    RANK_EXIT_SECONDS,
    ProcessGroup,
    is_connection_lost,
    join_ranks,
    launch_ranks,
)  # fmt: skip
from study.training.attempts import (
    log_attempt_end,
    log_attempt_start,
    quarantine_damage,
    record_error,
    start_attempt,
    sum_attempt_seconds,
)  # fmt: skip
from study.training.description import collect_metrics, describe_trial, describe_trial_environment, format_set_aside
from study.training.follower_rank import FollowerRankCallback
from study.training.lightning_trainer import build_trainer
from study.training.preemption import PreemptedError, StopRequest, handle_signals
from study.training.process_setup import free_device_memory, redirect_output, set_up_process
from study.training.recorder import Recorder
from study.training.warm_start import FreezeSwitchWeights, start_network

SPLITS: tuple[SplitName, ...] = ("validation", "train", "test")


def run_job(job: Job, stop_request: StopRequest | None = None, passes: Passes = OWN_PASSES) -> None:
    """Trains a trial unless it has a result. Leaves a result, or the reason why there is none, in its record.

    The outcome is only in the record: an error of the trial is not raised. On SIGTERM, SIGUSR1 and SIGUSR2 the trial
    writes a checkpoint after its current step, and this returns. A process that trains several trials, or that takes
    long to import this, sets the signal handlers itself and passes its `stop_request`.

    passes: computes the passes of its network.
    """
    folder = TrialFolder(job.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with handle_signals(stop_request) as stop_request, folder.lock().acquire(timeout=LOCK_SECONDS):
            if folder.read_result() is None or folder.damaged_files():
                _run_attempt(job, folder, stop_request, passes)
    except Timeout:
        pass  # another process trains this trial, and will leave its record


def _run_attempt(job: Job, folder: TrialFolder, stop_request: StopRequest, passes: Passes) -> None:
    attempt = folder.attempts()[0] + 1
    tracker = Tracker(folder.path, job.trial.key, job.wandb_runs, job.wandb_mode)
    step: int | None
    try:
        start_attempt(folder, job, attempt)
        how, step = train(job, folder, attempt, stop_request=stop_request, tracker=tracker, passes=passes)
    except Exception as error:  # any error is the reason why this trial has no result; it must not end the sweep
        how, step = record_error(folder, error), getattr(error, "step", None)
        tracker.end(describe_end(None, folder.read_state()))
    log_attempt_end(folder, attempt, step, how)
    free_device_memory()  # for the next trial: this process may wait for W&B
    passes.finish()
    if problem := tracker.close():
        logging.getLogger("study").warning("W&B: %s; the verb `sync` uploads what is missing", problem)


def train(
    job: Job,
    folder: TrialFolder,
    attempt: int = 1,
    callbacks: Sequence[L.Callback] = (),
    stop_request: StopRequest | None = None,
    tracker: Tracker | None = None,
    passes: Passes = OWN_PASSES,
) -> tuple[str, int]:
    """Trains one trial to its result, from its newest checkpoint if there is one. Returns its status and its steps.

    callbacks: more callbacks for the Trainer of rank 0. tracker: of the trial's W&B run, which the caller closes.
    passes: computes the passes of its network. Raises `PreemptedError` after a `stop_request`.
    """
    started = time.perf_counter()
    trial, stop_request = job.trial, stop_request or StopRequest()
    tracker = tracker or Tracker(folder.path, trial.key, job.wandb_runs, "disabled")
    set_up_process(job.threads)
    start_wandb_service(tracker.mode)
    notes: list[str] = []  # problems that the driver shows to the user
    quarantine_damage(folder, notes.append)
    # A trial of no epochs has a checkpoint for trials that start from it; it does not resume from it itself.
    checkpoint = find_newest_checkpoint(folder, trial.key, notes.append) if trial.config.epochs else None
    step = 0 if checkpoint is None else read_step(checkpoint)
    log_attempt_start(folder, job, attempt, step, passes.trials)

    data = _load_data(job)  # before other ranks start, because it may download
    _check_fingerprint(job, data)
    network = _build_network(job)
    geometry = trace_geometry(network)
    layers = select_switch_layers(network, geometry)
    description = describe_trial(job, network, len(geometry), _count_micro_batches(job))
    write_yaml(folder.trial, description)
    if stop_request.signal:
        raise PreemptedError(stop_request.signal, step)

    status, reason, tested = "done", None, {}
    note = json.dumps([trial.key, checkpoint.name if checkpoint else "", step])
    with launch_ranks(job.devices, train_worker_rank, job, checkpoint, rendezvous=job.rendezvous, note=note) as group:
        environment = {**describe_trial_environment(job), "data": data.fingerprint, "wandb": tracker.location}
        write_json(folder.environment, environment)
        tracker.start(trial.levels, build_run_config(description, environment, attempt))
        recorder = Recorder(folder, trial, layers, tracker, job.run.checkpoint_seconds, stop_request, group)
        try:
            tested = _fit_and_test(job, group, data, network, [*callbacks, recorder], checkpoint, passes)
            if recorder.pruned:
                status, reason = "pruned", f"by the search, after epoch {len(recorder.history) - 1}"
        except DivergedError as error:
            status, reason = "diverged", str(error)

    metrics = collect_metrics(
        recorder.last_metrics(), {name: nan_to_none(value) for name, value in tested.items()},
        TASKS[trial.config.task].main_metric, diverged=status == "diverged",
    )  # fmt: skip
    recorder.write_switch_weights()
    seconds = sum_attempt_seconds(folder) + (time.perf_counter() - started) / passes.trials
    outcome = {
        "status": status, "reason": reason, "epochs": len(recorder.history) - 1, "steps": recorder.steps[-1],
        "seconds": round(seconds, 3), "attempts": attempt, "metrics": metrics,
        "set_aside": len(data.set_aside), "notes": [*notes, *data.notes, *format_set_aside(data.set_aside)],
    }  # fmt: skip
    write_result(folder, description, outcome)
    tracker.log_switch_weights(
        recorder.history[-1], layers, trial.pool, trial.space, epochs=len(recorder.history) - 1
    )  # fmt: skip
    tracker.log_checkpoint(folder.last_checkpoint)
    tracker.end(describe_end(outcome, {}))
    return status, recorder.steps[-1]


def train_worker_rank(group: ProcessGroup, job: Job, checkpoint: Path | None) -> None:
    """Trains a trial on a rank > 0, in a process of its own, and records nothing but an error."""
    folder = TrialFolder(job.folder)
    redirect_output(folder.log)
    set_up_process(job.threads)
    try:
        _fit_and_test(job, group, _load_data(job), _build_network(job), [FollowerRankCallback(group)], checkpoint)
    except (DivergedError, PreemptedError):
        pass  # rank 0 records it
    except Exception as error:
        if isinstance(error, RuntimeError):  # if the cause is the death of another rank, this process is about to end
            time.sleep(RANK_EXIT_SECONDS)
        if not is_connection_lost(error):
            record_error(folder, error)
        raise


def join_trial(jobs: Sequence[Job]) -> None:
    """Trains, on another node of a cluster's job, the ranks of the trial that its first node trains now, if any."""

    def read_note(note: str) -> tuple[Job, Path | None]:
        key, name, step = json.loads(note)
        job = next(job for job in jobs if job.trial.key == key)
        checkpoint = job.folder / name if name else None
        if checkpoint is not None and read_step(checkpoint) != step:
            raise RuntimeError(f"{checkpoint}: this node still sees an older file")
        return job, checkpoint

    rendezvous = jobs[0].rendezvous
    assert rendezvous is not None
    join_ranks(jobs[0].devices, train_worker_rank, read_note, rendezvous)


def _fit_and_test(
    job: Job,
    group: ProcessGroup,
    data: TrialData,
    network: nn.Module,
    callbacks: list[L.Callback],
    checkpoint: Path | None,
    passes: Passes = OWN_PASSES,
) -> dict[str, float]:
    """Trains `network` on this rank's share of every batch. Returns the metrics of the last epoch and of the test."""
    config, seed = job.trial.config, job.trial.seeds["data"]
    device, share = torch.device(job.devices[group.rank]), (group.rank, group.world_size)
    data = data.to(device)
    training = data.build_training_loader(config.augmentation, share)
    module = TASKS[config.task](
        network, config, steps_per_epoch=len(training), seed=seed, group=group, accumulate=_count_micro_batches(job)
    )
    module.passes = passes
    if config.bn_statistics != "moving" or config.start_rule != "scratch":
        module.recalibration_batches = data.build_training_loader("none", share)
    validation, fitted, test = (data.build_evaluation_loader(split, share) for split in SPLITS)
    if config.start_rule == "frozen" and config.start_epoch:
        callbacks = [FreezeSwitchWeights(network, config.start_epoch), *callbacks]
    trainer = build_trainer(config, device, callbacks)
    trainer.fit(module, WholeEpochs(training), validation, ckpt_path=checkpoint)
    if not config.epochs:
        trainer.validate(module, validation, verbose=False)
    module.check_weights()
    trainer.test(module, [fitted, test], verbose=False)
    return module.epoch_metrics


def _load_data(job: Job) -> TrialData:
    trial, run = job.trial, job.run
    return load_data(trial.config, trial.seeds, run.data_root, run.loader_workers, own_data=run.own_data)


def _check_fingerprint(job: Job, data: TrialData) -> None:
    """Raises `UserError` if this machine has other data than the one that started the study."""
    for name, found in data.fingerprint.items():
        if found != job.data.get(name, found):
            raise UserError(
                f"the fingerprint of {name} is {found} on {platform.node()}, but {job.data[name]} where the study was "
                "started; run.data_root must have the same data on all machines"
            )


def _build_network(job: Job) -> nn.Module:
    """The network of one rank in its state before training, for micro-batches.

    The start rule is applied even to a trial that resumes from its own checkpoint, because it decides which parameters
    the optimizer has.
    """
    if job.build_network is not None:
        network: nn.Module = job.build_network(job)
        return network
    config, seed = job.trial.config, job.trial.seeds["init"]
    network = build_network(config, seed, ranks=len(job.devices) * _count_micro_batches(job))
    if job.start is not None:
        start_network(network, config, seed, job.start)
    return network


def _count_micro_batches(job: Job) -> int:
    """Number of micro-batches in which a device processes its share of a gradient batch."""
    return job.trial.gradient_batch // (len(job.devices) * job.trial.device_batch)
