"""A trial that is preempted, within an epoch or anywhere else, ends with the numbers of an uninterrupted one."""

from __future__ import annotations

import errno
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import wandb

from study.plan.job import Job
from study.record import io
from study.record.checkpoint import read_step
from study.record.io import read_attempts, read_json
from study.record.layout import TrialFolder
from study.tasks import TrainingModule
from study.training import recorder
from study.training.preemption import handle_signals
from study.training.trial import run_job
from tests.training.trials import (
    SHORT,
    STEPS,
    Killed,
    disturb,
    job,
    numbers,
    send_sigterm,
    smoke_trial,
)


def state(work: Job) -> dict[str, Any]:
    return read_json(TrialFolder(work.folder).state) or {}


@pytest.mark.parametrize(
    "overrides",
    [
        ["dropout=0.2"],
        ["norm=ssn", "logit_gradient_clip=1.0"],
        ["bn_statistics=batch", "solver=adam", "learning_rate=0.02"],
        ["norm=sn-random", "logit_init=random", "batch_size=1", "fixed_gradient_batch=16"],
        ["norm=bn", "precision=bfloat16", "dropout=0.2"],
    ],
    ids=["sn dropout", "ssn", "batch average", "b1", "bn bfloat16"],
)
def test_a_trial_that_is_preempted_repeatedly_has_the_numbers_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    trial = smoke_trial(*SHORT, *overrides)
    assert trial.steps_per_epoch == STEPS
    whole, preempted = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "preempted" / "r0")
    run_job(whole)
    middle = random.Random(str(overrides)).randrange(2, STEPS - 2)
    places = [
        ("_take_step", 0),  # the first step of all
        ("_take_step", middle),
        ("validation_step", STEPS),
        ("_take_step", STEPS),  # the first of an epoch
        ("_take_step", STEPS + middle),
        ("_take_step", 2 * STEPS - 2),
        ("_take_step", 2 * STEPS - 1),  # the last of all: the trial continues to the test, and stops there
    ]
    for hook, step in places:
        disturb(monkeypatch, preempted, hook, step, send_sigterm)
        assert state(preempted)["state"] == "interrupted", (hook, step)
    run_job(preempted)
    assert numbers(TrialFolder(preempted.folder)) == numbers(TrialFolder(whole.folder))
    attempts = read_attempts(TrialFolder(preempted.folder).attempts_log)
    assert [line["step"] for line in attempts if "how" not in line] == [
        0, 1, middle + 1, STEPS, STEPS + 1, STEPS + middle + 1, 2 * STEPS - 1, 2 * STEPS,
    ]  # fmt: skip


@pytest.mark.parametrize("task", [("task=segmentation", "deep_supervision=0.4"), ("task=detection",)])
def test_other_tasks_are_preempted_and_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: tuple[str, ...]
) -> None:
    trial = smoke_trial(
        *task, "dataset=scenes", "width=0.25", "train_samples=12", "validation_fraction=0.005", "batch_size=1",
        "chunks=2", "epochs=2",
    )  # fmt: skip
    whole, preempted = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "preempted" / "r0")
    run_job(whole)
    for hook, step in (("_take_step", 3), ("validation_step", 6), ("_take_step", 9)):
        disturb(monkeypatch, preempted, hook, step, send_sigterm)
    run_job(preempted)
    assert numbers(TrialFolder(preempted.folder)) == numbers(TrialFolder(whole.folder))


def test_a_trial_resumes_from_checkpoints_within_an_epoch_and_between_loss_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more than 50 steps per epoch, some were checked before the checkpoint, and some are pending in it."""
    trial = smoke_trial("epochs=2", "chunks=1", "train_samples=140", "dropout=0.2")
    assert trial.steps_per_epoch == 70
    whole, killed = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "killed" / "r0")
    run_job(whole)
    monkeypatch.setattr(recorder, "CHECKPOINT_TIME_SHARE", 1.0)  # a checkpoint after about every second step

    def die() -> None:
        raise Killed

    resumed = []
    for step in (5, 49, 50, 60, 69, 75, 121, 138):
        with pytest.raises(Killed):
            disturb(monkeypatch, killed, "_take_step", step, die)
        resumed.append(read_step(TrialFolder(killed.folder).last_checkpoint))
    run_job(killed)
    assert sum(step % 70 > 0 for step in resumed) >= 6, resumed
    assert numbers(TrialFolder(killed.folder)) == numbers(TrialFolder(whole.folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_preemption_is_no_failure_and_its_reason_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    work = job(smoke_trial(*SHORT), tmp_path / "r0")
    before = signal.getsignal(number)

    def send_two_signals() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)

    disturb(monkeypatch, work, "_take_step", 3, send_two_signals)
    folder = TrialFolder(work.folder)
    assert folder.status() == ("stale", f"{number.name} after step 4")
    assert folder.attempts() == (1, 0)
    start, end = read_attempts(folder.attempts_log)
    assert (start["attempt"], start["step"], start["pid"], start["devices"]) == (1, 0, os.getpid(), ["cpu"])
    assert (end["attempt"], end["step"], end["how"]) == (1, 4, "interrupted")
    assert signal.getsignal(number) == before


def test_a_signal_between_two_trials_of_a_process_is_not_lost(tmp_path: Path) -> None:
    work = job(smoke_trial(*SHORT), tmp_path / "r0")
    with handle_signals() as stop_request:
        send_sigterm()
        run_job(work, stop_request)
    assert TrialFolder(work.folder).status() == ("stale", "SIGTERM after step 0")


def test_a_preempted_trial_closes_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next trial in this process would write into it."""
    work = replace(job(smoke_trial(*SHORT), tmp_path / "r0"), wandb_mode="offline")
    disturb(monkeypatch, work, "_take_step", 3, send_sigterm)
    assert list(TrialFolder(work.folder).wandb.glob("offline-run-*"))
    assert wandb.run is None


def test_a_trial_is_preempted_within_the_test_and_tests_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = smoke_trial(*SHORT)
    whole, preempted = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "preempted" / "r0")
    run_job(whole)
    disturb(monkeypatch, preempted, "test_step", 2 * STEPS, send_sigterm)
    assert state(preempted)["reason"] == f"SIGTERM after step {2 * STEPS}"
    run_job(preempted)
    assert numbers(TrialFolder(preempted.folder)) == numbers(TrialFolder(whole.folder))


def test_a_trial_that_is_preempted_before_its_first_step_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from study.training import trial

    work = job(smoke_trial(*SHORT), tmp_path / "r0")
    load = trial.load_data

    def load_after_sigterm(*arguments: Any, **settings: Any) -> Any:
        send_sigterm()
        return load(*arguments, **settings)

    monkeypatch.setattr(trial, "load_data", load_after_sigterm)
    run_job(work)
    assert TrialFolder(work.folder).status() == ("stale", "SIGTERM after step 0")
    assert not TrialFolder(work.folder).last_checkpoint.exists()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("last.ckpt", errno.ENOSPC),
        ("metrics.jsonl", errno.EDQUOT),
        ("switch_weights.parquet", errno.ENOSPC),
        ("result.json", errno.EDQUOT),
    ],
)
def test_a_full_disk_is_no_failure_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    trial = smoke_trial(*SHORT)
    whole, full = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "full" / "r0")
    run_job(whole)
    disturb(monkeypatch, full, "_take_step", 5, send_sigterm)  # leaves a checkpoint

    def no_space(descriptor: int) -> None:
        written = os.fstat(descriptor).st_ino
        if any(path.stat().st_ino == written for path in full.folder.glob(f"{name}.tmp*")):
            raise OSError(number, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(io.os, "fsync", no_space)
        for _ in range(3):
            run_job(full)
    folder = TrialFolder(full.folder)
    assert folder.status() == ("stale", f"no space left on {folder.path}")
    assert folder.attempts()[1] == 0
    assert not list(folder.path.glob("*.tmp*"))
    run_job(full)
    assert numbers(folder) == numbers(TrialFolder(whole.folder))


def test_a_disk_too_full_for_the_reason_has_the_effect_of_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(smoke_trial(*SHORT), tmp_path / "r0")

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    def fill() -> None:
        monkeypatch.setattr(io.os, "fsync", no_space)

    disturb(monkeypatch, work, "_take_step", 5, fill)
    assert TrialFolder(work.folder).status() == ("stale", "attempt 1 was interrupted")


def test_slurm_variables_and_a_foreign_checkpoint_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = smoke_trial(*SHORT)
    whole, other = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "slurm" / "r0")
    run_job(whole)
    foreign = torch.load(TrialFolder(whole.folder).last_checkpoint, weights_only=True)
    variables = {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    other.folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for place in (other.folder, tmp_path):
        torch.save(foreign, place / "hpc_ckpt_1.ckpt")
    disturb(monkeypatch, other, "_take_step", 5, send_sigterm)
    run_job(other)
    assert numbers(TrialFolder(other.folder)) == numbers(TrialFolder(whole.folder))
    assert len(read_attempts(TrialFolder(other.folder).attempts_log)) == 4


def test_checkpoints_within_an_epoch_take_a_fiftieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fake clock on which a step takes a second and a checkpoint a quarter of a second."""
    now, saved = [0.0], []
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: now[0]))
    original = TrainingModule._take_step

    def step(module: TrainingModule, *arguments: Any) -> None:
        now[0] += 1.0
        original(module, *arguments)

    def save(trainer: L.Trainer, path: Path) -> None:
        now[0] += 0.25  # at 2 % of the time, 12.5 s between two checkpoints
        saved.append(trainer.lightning_module.steps_taken)

    monkeypatch.setattr(TrainingModule, "_take_step", step)
    monkeypatch.setattr(L.Trainer, "save_checkpoint", save)
    trial = smoke_trial("epochs=1", "chunks=1", "train_samples=140")
    work = job(trial, tmp_path / "r0")
    run_job(work)
    assert saved == [1, 14, 27, 40, 53, 66, 70]
