"""Nothing is ever lost: whatever is killed, the same command ends with the very same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from study.config.schema import RunConfig, TrackingConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from study.training.trial import run_job
from tests.conftest import ROOT

SETTINGS = ["norm=[sn, bn]", "batch_size=[2, 16]", "epochs=4", "dropout=0.2", "checkpoint_seconds=0"]
OFF = TrackingConfig(mode="disabled")


def smoke_trial(*overrides: str) -> PlannedTrial:
    return plan_trials(load_study("depth_vs_batch", "smoke", ["norm=sn", "batch_size=2", *overrides]))[0]


def job(trial: PlannedTrial, folder: Path) -> Job:
    return Job(
        trial=trial, folder=folder, study="s", run=RunConfig(checkpoint_seconds=0), tracking=OFF,
        wandb_mode="disabled", environment={"host": "h"}, command="c",
    )  # fmt: skip


def numbers(folder: TrialFolder) -> tuple[Any, ...]:
    """Everything of a record that must not depend on what happened on the way."""
    result = folder.read_result()
    assert result is not None, folder.path
    return result["status"], result["metrics"], folder.metrics.read_bytes(), folder.switch_weights.read_bytes()


class Killed(BaseException):
    """Stands for a kill -9 in this process: nothing in the trial may catch it."""


def train_and_die_after(monkeypatch: pytest.MonkeyPatch, work: Job, epoch: int) -> None:
    """Trains until the record of an epoch is half written, and dies there."""
    from study.training import recorder

    original = recorder.Recorder._save

    def save(self: recorder.Recorder, trainer: Any) -> None:
        original(self, trainer)
        if len(self.history) - 1 == epoch:
            with self.folder.metrics.open("a") as file:
                file.write('{"schema": 1, "epoch": 99, "na')  # a torn line
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "_save", save)
        with pytest.raises(Killed):
            run_job(work)


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=3", "dropout=0.2"],
        ["epochs=3", "norm=ssn", "logit_gradient_clip=1.0"],
        ["epochs=3", "bn_statistics=batch", "solver=adam", "learning_rate=0.02"],
        ["epochs=3", "norm=bn", "solver=rmsprop", "learning_rate=0.01", "decay=step", "augmentation=shift_flip"],
        ["epochs=3", "norm=sn-random", "logit_init=random", "batch_size=1"],
        ["epochs=3", "norm=sn-shared", "solver=nesterov"],
    ],
    ids=["sn dropout", "ssn", "batch average", "bn", "b1", "shared"],
)
def test_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    trial = smoke_trial(*overrides)
    whole, killed = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "killed" / "r0")
    run_job(whole)
    train_and_die_after(monkeypatch, killed, 1)
    train_and_die_after(monkeypatch, killed, 2)
    run_job(killed)
    assert numbers(TrialFolder(killed.folder)) == numbers(TrialFolder(whole.folder))
    assert json.loads(TrialFolder(killed.folder).result.read_text())["attempts"] == 3


def test_a_damaged_checkpoint_costs_an_epoch_and_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = smoke_trial("epochs=3")
    whole, killed = job(trial, tmp_path / "whole" / "r0"), job(trial, tmp_path / "killed" / "r0")
    run_job(whole)
    train_and_die_after(monkeypatch, killed, 2)
    folder = TrialFolder(killed.folder)
    folder.last_checkpoint.write_bytes(folder.last_checkpoint.read_bytes()[:-100])
    run_job(killed)
    assert numbers(folder) == numbers(TrialFolder(whole.folder))
    assert list(folder.path.glob("last.ckpt.damaged-*"))
    (note,) = json.loads(folder.result.read_text())["notes"]
    assert "last.ckpt: damaged" in note


def test_a_finished_trial_is_left_alone(tmp_path: Path) -> None:
    work = job(smoke_trial("epochs=1"), tmp_path / "r0")
    run_job(work)
    before = TrialFolder(work.folder).result.stat().st_mtime_ns
    run_job(work)
    assert TrialFolder(work.folder).result.stat().st_mtime_ns == before


def test_a_trial_that_is_training_elsewhere_is_not_trained_twice(tmp_path: Path) -> None:
    work = job(smoke_trial("epochs=1"), tmp_path / "r0")
    work.folder.mkdir(parents=True)
    with TrialFolder(work.folder).lock():
        run_job(work)
    assert not TrialFolder(work.folder).result.exists()


def test_divergence_is_a_result(tmp_path: Path) -> None:
    work = job(smoke_trial("epochs=3", "learning_rate=1e30"), tmp_path / "r0")
    run_job(work)
    result = TrialFolder(work.folder).read_result()
    assert result is not None
    assert result["status"] == "diverged"
    assert "not finite at step" in result["reason"]
    assert result["metrics"]["val_accuracy"] is None


def test_a_failure_leaves_its_reason_and_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("study.training.trial.load_data", broken)
    work = job(smoke_trial("epochs=1"), tmp_path / "r0")
    run_job(work)
    assert TrialFolder(work.folder).status() == ("failed", "RuntimeError: no such luck")
    assert "Traceback" in json.loads(TrialFolder(work.folder).state.read_text())["traceback"]


# ---------------------------------------------------------------------------- the whole sweep, with real signals


def command(out: Path, *overrides: str) -> list[str]:
    flags = [part for setting in (*SETTINGS, *overrides) for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "run_study.py"), "--study", "depth_vs_batch", "--scale", "smoke", *flags,
            "--out", str(out)]  # fmt: skip


def trial_processes(folder: StudyFolder) -> list[int]:
    """Processes of trials that run now."""
    pids = []
    for trial in folder.trials():
        if trial.state.exists() and trial.is_locked():
            pids.append(json.loads(trial.state.read_text())["pid"])
    return pids


def all_numbers(folder: StudyFolder) -> dict[str, Any]:
    return {trial.key: numbers(trial) for trial in folder.trials()}


@pytest.mark.slow
def test_a_study_killed_again_and_again_ends_with_the_numbers_of_an_undisturbed_one(tmp_path: Path) -> None:
    # One worker against the default of one a core: how many there are must not matter either.
    assert subprocess.run([*command(tmp_path / "whole"), "--workers", "1"], capture_output=True).returncode == 0
    undisturbed = StudyFolder(tmp_path / "whole" / "depth_vs_batch")
    folder = StudyFolder(tmp_path / "killed" / "depth_vs_batch")
    rng, kills = random.Random(0), 0
    while kills < 6:
        driver = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not trial_processes(folder) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(2):  # first a trial, which the driver starts again; then the driver itself
            time.sleep(rng.uniform(0, 1.5))
            if running := trial_processes(folder):
                os.kill(rng.choice(running), signal.SIGKILL)
                kills += 1
        time.sleep(rng.uniform(0, 1.5))
        if driver.poll() is None:
            driver.kill()
            kills += 1
        driver.wait()
        if all(trial.read_result() for trial in folder.trials()) and len(list(folder.trials())) == 4:
            # Finished before the last kill: one trial loses its result, and its last checkpoint, and goes on.
            victim = rng.choice(list(folder.trials()))
            victim.result.unlink()
            victim.last_checkpoint.unlink()
    final = subprocess.run(command(tmp_path / "killed"), capture_output=True, text=True)
    assert final.returncode == 0, final.stdout + final.stderr
    assert all_numbers(folder) == all_numbers(undisturbed)
    reports = [(study.report / "answers.json").read_bytes() for study in (folder, undisturbed)]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "depth_vs_batch")
    long = command(tmp_path, "epochs=20")  # long enough to be stopped
    driver = subprocess.Popen(
        long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts what it runs in the background with SIGINT ignored, and this is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not trial_processes(folder):
        assert driver.poll() is None
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    said, complaint = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Run the same command to resume" in complaint
    assert "Traceback" not in said + complaint
    assert trial_processes(folder) == []
    assert subprocess.run(long, capture_output=True).returncode == 0
    assert len(all_numbers(folder)) == 4


def test_status_shows_a_failed_trial_with_its_reason(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "depth_vs_batch")
    trial = plan_trials(load_study("depth_vs_batch", "smoke"))[0]
    state = {"state": "failed", "attempt": 3, "reason": "OutOfMemoryError: too big", "traceback": "..."}
    write_json(folder.trial(trial.trial_id, 0).state, state)
    arguments = ["status", "--study", "depth_vs_batch", "--scale", "smoke", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(ROOT / "run_study.py"), *arguments], capture_output=True, text=True)
    assert f"1 failed: OutOfMemoryError: too big ({trial.key})" in done.stdout
