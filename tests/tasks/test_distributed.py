"""One trial on several devices and in micro-batches: the numbers of one device, and what the death of a rank does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from study.config.errors import UserError
from study.config.rendezvous import Rendezvous
from study.config.schema import RunConfig
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.contents import read_metrics
from study.record.io import read_attempts, write_json
from study.record.layout import TrialFolder
from study.tasks import distributed
from study.tasks.distributed import LOOPBACK, ProcessGroup, join_ranks, launch_ranks
from study.training.trial import run_job
from tests.training.trials import disturb, numbers, send_sigterm

pytestmark = pytest.mark.slow


def job(folder: Path, *overrides: str, devices: int = 1, accumulate: int = 1) -> Job:
    """20 steps per epoch, of 8 chunks of 2, at a learning rate at which differences would grow."""
    base = ["norm=sn", "batch_size=2", "chunks=8", "train_samples=320", "validation_fraction=0.3", "epochs=1",
            "learning_rate=1.0", "fixed_gradient_batch=null", "epoch_steps=null", "augmentation=shift",
            "zero_last_gamma=true"]  # fmt: skip
    run = RunConfig(checkpoint_seconds=0, devices_per_trial=devices, accumulate=accumulate)
    study = load_study("depth_vs_batch", "laptop", ["depth=8", "initialization=he_normal", *base, *overrides])
    (trial,) = plan_trials(study.model_copy(update={"run": run, "replicates": 1}))
    return Job(
        trial=trial, folder=folder, study="s", run=run, environment={"host": "h"}, command="c",
        devices=("cpu",) * devices,
    )  # fmt: skip


def train(work: Job) -> TrialFolder:
    run_job(work)
    folder = TrialFolder(work.folder)
    assert folder.read_result() is not None, folder.state.read_text()
    return folder


def losses(folder: TrialFolder) -> dict[str, float]:
    """The losses of every epoch, and of the splits that are evaluated at the end."""
    curves = {f"{row['name']} {row['epoch']}": row["value"] for row in read_metrics(folder.metrics)}
    found = {**curves, **(folder.read_result() or {})["metrics"]}
    return {name: value for name, value in found.items() if "loss" in name}


def check_close(one: TrialFolder, other: TrialFolder, rtol: float = 1e-4) -> None:
    """Compares losses and switch weights of every epoch."""
    assert {"train_loss 1", "val_loss 1", "fit_loss", "test_loss"} <= set(losses(one))
    assert losses(other) == pytest.approx(losses(one), rel=rtol)
    weights = [pd.read_parquet(folder.switch_weights).weight for folder in (one, other)]
    assert weights[1].to_list() == pytest.approx(weights[0].to_list(), rel=rtol)


@pytest.mark.parametrize("norm", ["sn", "ssn", "bn", "gn"])
def test_devices_and_micro_batches_change_numbers_only_by_rounding(tmp_path: Path, norm: str) -> None:
    one = train(job(tmp_path / "one" / "r0", f"norm={norm}"))
    for devices, accumulate in ((2, 1), (1, 4), (2, 2)):
        name = f"{devices}-{accumulate}"
        other = train(job(tmp_path / name / "r0", f"norm={norm}", devices=devices, accumulate=accumulate))
        check_close(one, other)
        result = other.read_result()
        assert result is not None
        batches = [result[f"{kind}_batch"] for kind in ("statistics", "gradient", "device")]
        assert batches == [2, 16, 16 // (devices * accumulate)]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_other_tasks_on_several_devices(tmp_path: Path, task: str) -> None:
    small = ("dataset=scenes", "width=0.25", "train_samples=16", "validation_fraction=0.005")
    settings = (f"task={task}", "chunks=4", "batch_size=1", "epochs=1", *small)
    one, two = (train(job(tmp_path / f"{n}" / "r0", *settings, devices=n)) for n in (1, 2))
    weights = [pd.read_parquet(folder.switch_weights).weight.to_list() for folder in (one, two)]
    assert weights[1] == pytest.approx(weights[0], rel=1e-3)
    first, second = ((folder.read_result() or {})["metrics"] for folder in (one, two))
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
    assert second["test_score"] == pytest.approx(first["test_score"], rel=0.02, abs=1e-3)


@pytest.mark.parametrize("norm", ["sn", "bn", "ssn"])
def test_synchronized_statistics_on_several_devices_are_those_of_the_whole_batch(tmp_path: Path, norm: str) -> None:
    settings = (f"norm={norm}", "sync_statistics=true")
    one, two = (train(job(tmp_path / f"{n}" / "r0", *settings, devices=n)) for n in (1, 2))
    check_close(one, two)
    with pytest.raises(AssertionError):  # statistics of chunks differ
        check_close(one, train(job(tmp_path / "chunks" / "r0", f"norm={norm}", devices=2)))


@pytest.mark.parametrize(
    ("overrides", "rtol"),
    [
        (["bn_statistics=batch"], 1e-4),
        (["bn_statistics=batch_total"], 1e-4),
        (["solver=adam", "learning_rate=0.01"], 1e-3),
        (["precision=bfloat16"], 0.02),
    ],
    ids=["batch average", "batch total", "adam", "bfloat16"],
)
def test_devices_and_micro_batches_with_other_settings(tmp_path: Path, overrides: list[str], rtol: float) -> None:
    one = train(job(tmp_path / "one" / "r0", *overrides))
    check_close(one, train(job(tmp_path / "two" / "r0", *overrides, devices=2, accumulate=2)), rtol)


def test_a_preempted_group_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("epochs=2", "dropout=0.1")
    whole = train(job(tmp_path / "whole" / "r0", *settings, devices=4))
    preempted = job(tmp_path / "preempted" / "r0", *settings, devices=4)
    for step in (3, 13, 25, 39):  # they stop after the tenth step of an epoch, after an epoch, and within the test
        disturb(monkeypatch, preempted, "_take_step", step, send_sigterm)
    assert numbers(train(preempted)) == numbers(whole)
    attempts = read_attempts(TrialFolder(preempted.folder).attempts_log)
    assert [line["step"] for line in attempts if "how" in line] == [10, 20, 30, 40, 40]


def test_a_trial_resumes_on_another_number_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(job(tmp_path / "whole" / "r0", "epochs=2"))
    moved = tmp_path / "moved" / "r0"
    disturb(monkeypatch, job(moved, "epochs=2", devices=2), "_take_step", 5, send_sigterm)
    disturb(monkeypatch, job(moved, "epochs=2"), "_take_step", 14, send_sigterm)
    check_close(whole, train(job(moved, "epochs=2", devices=2, accumulate=2)))
    steps = [line["step"] for line in read_attempts(TrialFolder(moved).attempts_log) if "how" not in line]
    assert steps == [0, 10, 15]


def test_a_group_diverges_like_one_device(tmp_path: Path) -> None:
    results = [
        train(job(tmp_path / name / "r0", "learning_rate=1e30", devices=devices)).read_result() or {}
        for name, devices in (("one", 1), ("two", 2))
    ]
    assert results[0]["status"] == results[1]["status"] == "diverged"
    assert results[0]["reason"] == results[1]["reason"]


def test_a_group_is_pruned_like_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(tmp_path / "r0", "epochs=3", devices=2)
    prune = TrialFolder(work.folder).prune
    disturb(monkeypatch, work, "_take_step", 5, lambda: write_json(prune, {"epoch": 1}))
    folder = TrialFolder(work.folder)
    pruned = numbers(folder)
    assert (folder.read_result() or {})["epochs"] == 1
    folder.result.unlink()  # as after a kill before the result
    assert numbers(train(work)) == pruned


def test_a_failure_on_another_rank_is_the_recorded_reason(tmp_path: Path) -> None:
    """Only the second rank has a device that does not exist."""
    work = replace(job(tmp_path / "r0", devices=2), devices=("cpu", "meta"))
    assert run_in_process(work) != 0
    status, reason = TrialFolder(work.folder).status()
    assert status == "failed"
    assert TrialFolder(work.folder).attempts() == (1, 1)
    assert "onnection" not in reason


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_attempt_and_all_processes(tmp_path: Path, rank: int) -> None:
    work = job(tmp_path / "r0", "epochs=500", devices=2)
    process = multiprocessing.get_context("forkserver").Process(target=run_job, args=(work,))
    process.start()
    folder = TrialFolder(work.folder)
    wait_until(lambda: folder.last_checkpoint.exists())
    others = [pid for pid in writers(folder.log) if pid != process.pid]
    assert len(others) == 1
    os.kill([process.pid or 0, *others][rank], signal.SIGKILL)
    process.join(10)
    assert process.exitcode == (1 if rank else -signal.SIGKILL)
    wait_until(lambda: not writers(folder.log), seconds=10)
    assert folder.status() == ("stale", "attempt 1 was interrupted")
    assert folder.attempts() == (1, 0)
    assert len(read_attempts(folder.attempts_log)) == 1


INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
LOOPBACK_INTERFACE = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def write_interfaces(group: ProcessGroup, folder: Path) -> None:
    (folder / str(group.rank)).write_text(" ".join(os.environ.get(name, "") for name in INTERFACES))
    group.broadcast(0)


def join_second_node(rendezvous: Rendezvous, folder: Path) -> None:
    assert join_ranks(("cpu",) * 4, write_interfaces, lambda note: [folder], rendezvous)


def test_all_ranks_of_all_nodes_use_the_interface_of_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of two ranks, each node a process of this machine."""
    for name in INTERFACES:
        monkeypatch.setenv(name, "unknown")
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    rendezvous = Rendezvous(nodes=2, node=0, address=LOOPBACK, port=port, interface=LOOPBACK_INTERFACE)
    second = multiprocessing.get_context("forkserver").Process(
        target=join_second_node, args=(replace(rendezvous, node=1), tmp_path)
    )
    second.start()
    with launch_ranks(("cpu",) * 4, write_interfaces, tmp_path, rendezvous=rendezvous) as group:
        write_interfaces(group, tmp_path)
    second.join(60)
    assert second.exitcode == 0
    used = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert used == dict.fromkeys("0123", f"{LOOPBACK_INTERFACE} {LOOPBACK_INTERFACE}")


def test_without_the_setting_the_variables_are_those_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INTERFACES:
        monkeypatch.setenv(name, "ib0")
    for rendezvous in (None, Rendezvous(nodes=2, node=0, address=LOOPBACK, port=1)):
        distributed._choose_interface(rendezvous)
        assert [os.environ[name] for name in INTERFACES] == ["ib0", "ib0"]


def test_an_interface_that_a_machine_lacks_is_an_error() -> None:
    rendezvous = Rendezvous(nodes=2, node=0, address=LOOPBACK, port=1, interface=f"{LOOPBACK_INTERFACE},ib7")
    with pytest.raises(UserError, match=f"launch.interface=ib7: .* allowed: .*{LOOPBACK_INTERFACE}"):
        distributed._choose_interface(rendezvous)


def run_in_process(work: Job) -> int | None:
    process = multiprocessing.get_context("forkserver").Process(target=run_job, args=(work,))
    process.start()
    process.join(120)
    return process.exitcode


def writers(log: Path) -> list[int]:
    """Ids of the processes whose output goes to a file."""
    found = []
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if output.resolve() == log:
                found.append(int(output.parts[2]))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
