"""A killed trial or study that is started again ends with the numbers of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from study.training.trial import run_job
from tests.conftest import ROOT, Command
from tests.training.trials import all_numbers, job, numbers, smoke_trial, train_and_die_after

SETTINGS = ["norm=[sn, bn]", "batch_size=2", "replicates=2", "epochs=4", "checkpoint_seconds=0"]  # two groups


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


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_pruned_trial_that_was_killed_before_its_result_trains_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(smoke_trial("epochs=3"), tmp_path / "r0")
    folder = TrialFolder(work.folder)
    write_json(folder.prune, {"epoch": 1})
    train_and_die_after(monkeypatch, work, 1)
    run_job(work)
    result = folder.read_result()
    assert result is not None
    assert (result["status"], result["epochs"]) == ("pruned", 1)


def test_a_finished_trial_is_not_trained_again(tmp_path: Path) -> None:
    work = job(smoke_trial("epochs=1"), tmp_path / "r0")
    run_job(work)
    before = TrialFolder(work.folder).result.stat().st_mtime_ns
    run_job(work)
    assert TrialFolder(work.folder).result.stat().st_mtime_ns == before


def test_a_trial_that_another_process_trains_is_not_trained_twice(tmp_path: Path) -> None:
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


def test_a_failure_records_its_reason_and_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("study.training.trial.load_data", broken)
    work = job(smoke_trial("epochs=1"), tmp_path / "r0")
    run_job(work)
    assert TrialFolder(work.folder).status() == ("failed", "RuntimeError: no such luck")
    assert "Traceback" in json.loads(TrialFolder(work.folder).state.read_text())["traceback"]


# --------------------------------------------------------------------------- whole studies, with real signals


def build_command(out: Path, *overrides: str) -> list[str]:
    flags = [part for setting in (*SETTINGS, *overrides) for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "run_study.py"), "--study", "depth_vs_batch", "--scale", "smoke", *flags,
            "--out", str(out)]  # fmt: skip


def trial_processes(folder: StudyFolder) -> list[int]:
    """Process ids of the trials that are running."""
    pids = []
    for trial in folder.trials():
        if trial.state.exists() and trial.is_locked():
            pids.append(json.loads(trial.state.read_text())["pid"])
    return pids


@pytest.mark.slow
def test_a_study_killed_repeatedly_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path: Path) -> None:
    # With one worker instead of one per core, because the number of workers must not matter either.
    assert subprocess.run([*build_command(tmp_path / "whole"), "--workers", "1"], capture_output=True).returncode == 0
    uninterrupted = StudyFolder(tmp_path / "whole" / "depth_vs_batch")
    folder = StudyFolder(tmp_path / "killed" / "depth_vs_batch")
    rng, kills = random.Random(0), 0
    while kills < 4:
        driver = subprocess.Popen(
            build_command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not trial_processes(folder) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(2):  # first trials, which the driver starts again; then the driver itself
            time.sleep(rng.uniform(0, 1.5))
            if running := trial_processes(folder):
                with suppress(ProcessLookupError):  # its trial is locked by the next process, which has not said so yet
                    os.kill(rng.choice(running), signal.SIGKILL)
                    kills += 1
        time.sleep(rng.uniform(0, 1.5))
        if driver.poll() is None:
            driver.kill()
            kills += 1
        driver.wait()
        if all(trial.read_result() for trial in folder.trials()) and len(list(folder.trials())) == 4:
            # All trials finished before the last kill: delete a result and a checkpoint, so that one must resume.
            victim = rng.choice(list(folder.trials()))
            victim.result.unlink()
            victim.last_checkpoint.unlink()
    final = subprocess.run(build_command(tmp_path / "killed"), capture_output=True, text=True)
    assert final.returncode == 0, final.stdout + final.stderr
    assert all_numbers(folder) == all_numbers(uninterrupted)
    reports = [(study.report / "answers.json").read_bytes() for study in (folder, uninterrupted)]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "depth_vs_batch")
    long = build_command(tmp_path, "norm=sn", "epochs=10")  # long enough to be stopped
    driver = subprocess.Popen(
        long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    while not trial_processes(folder):
        assert driver.poll() is None
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does, to all processes in the foreground
    output, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert errors.splitlines()[-1] == "Interrupted. Run the same command again to continue."
    assert "Traceback" not in output + errors
    assert trial_processes(folder) == []
    assert subprocess.run(long, capture_output=True).returncode == 0
    assert len(all_numbers(folder)) == 2


def test_ctrl_c_while_the_kernels_are_compiled_is_one_line(tmp_path: Path) -> None:
    """As in the first run on a machine."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexec sleep 600\n")
    compiler.chmod(0o700)
    driver = subprocess.Popen(
        build_command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    while not list(tmp_path.glob("cache/*/build-*")):
        assert driver.poll() is None
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGINT)
    output, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert errors.splitlines()[-1] == "Interrupted. Run the same command again to continue."
    assert "Traceback" not in output + errors
    assert not list(tmp_path.glob("cache/*/build-*"))


def test_status_shows_a_failed_trial_with_its_reason(command: Command, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "depth_vs_batch")
    trial = plan_trials(load_study("depth_vs_batch", "smoke"))[0]
    state = {"state": "failed", "attempt": 3, "reason": "OutOfMemoryError: too big", "traceback": "..."}
    write_json(folder.trial(trial.trial_id, 0).state, state)
    done = command("status", "--study", "depth_vs_batch", "--scale", "smoke", "--out", str(tmp_path))
    assert f"1 failed: OutOfMemoryError: too big ({trial.key})" in done.out
