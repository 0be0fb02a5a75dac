"""Commands that torchrun or srun starts several times: they train each trial together, or are refused."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig
from study.record.io import read_json
from study.record.layout import StudyFolder
from study.sweep.executors import env
from tests.conftest import ROOT, Command
from tests.services.daemons import free_ports

SETTINGS = ("tracking.mode=disabled", "epochs=1", "norm=sn", "batch_size=[2, 4]", "chunks=2", "dropout=0.2",
            "run.devices_per_trial=2")  # fmt: skip
STUDY = ("--study", "depth_vs_batch", "--scale", "smoke", *(part for each in SETTINGS for part in ("--set", each)))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves may run under srun."""
    for variable in (*env.PROCESS_COUNTS, "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.slow
def test_a_study_under_torchrun_has_the_numbers_of_one_process(
    tmp_path: Path, local_numbers: Callable[..., dict[str, Any]]
) -> None:
    from tests.training.test_resume import all_numbers

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, ROOT / "run_study.py", *STUDY, "--launcher", "env", "--out", tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2/2") == 1  # one driver
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert [read_json(trial.state)["attempt"] for trial in folder.trials()] == [1, 1]
    assert all_numbers(folder) == local_numbers(*SETTINGS)


@pytest.mark.parametrize(
    ("variable", "program"),
    [("WORLD_SIZE", "torchrun"), ("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")],
)
def test_a_command_that_was_started_several_times_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, program: str
) -> None:
    monkeypatch.setenv(variable, "4")
    refused = command(*STUDY, "--out", str(tmp_path / "runs"))
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
    assert f"{variable}=4: {program} has started this command 4 times; start it once" in refused.err
    assert not (tmp_path / "runs").exists()


def test_a_command_that_was_started_once_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # in a batch script, which runs once
    monkeypatch.setenv("WORLD_SIZE", "1")
    env.check_started_once()


@pytest.mark.parametrize(
    ("variables", "flags", "complaint"),
    [
        ({}, (), "this command was started once"),
        ({"WORLD_SIZE": "2"}, (), "needs the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, ("--detach",), "--detach: not with --launcher env"),
    ],
)
def test_what_the_launcher_lacks_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], flags: tuple[str],
    complaint: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = command(*STUDY, *flags, "--launcher", "env", "--out", str(tmp_path / "runs"))
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
    assert complaint in refused.err


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of rank 0 of two processes; the other one is never started."""
    (port,) = free_ports(1)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("rank", "problem"), [("0", "not all of the 2 processes have started"), ("1", "port")])
def test_a_process_says_that_it_waits_for_the_others(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_processes: None, rank: str, problem: str
) -> None:
    """And then gives up. It leaves the key of a driver that trains this study alone."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(env, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(env, "CONNECT_SECONDS", 1.0)
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    key = env._write_key(folder)
    refused = command(*STUDY, "--launcher", "env", "--out", str(tmp_path / "runs"))
    waiting, error = refused.err.splitlines()
    assert problem in waiting
    assert "yet; waiting" in waiting
    assert refused.code == 2
    assert error.startswith("error: --launcher env:")
    assert problem in error
    assert folder.env_key.read_bytes() == key


def test_a_port_that_is_in_use_is_one_line(command: Command, tmp_path: Path, two_processes: None) -> None:
    """Two commands in one job of Slurm derive the same port."""
    port = int(os.environ["MASTER_PORT"])
    with socket.create_server(("", port)):
        refused = command(*STUDY, "--launcher", "env", "--out", str(tmp_path / "runs"))
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
    assert f"cannot listen on port {port}" in refused.err


def test_the_driver_ends_after_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_processes: None
) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(env, "_open_store", lambda here: store)
    monkeypatch.setattr(env, "MISSED_POLLS", 2)
    study: Any = SimpleNamespace(run=RunConfig(devices_per_trial=2), launch=LaunchConfig())
    executor = env.EnvExecutor(study, StudyFolder(tmp_path / "study"))
    for _ in range(4):
        store.add("beats of 1", 1)
        assert executor.wait(0) == {}
    executor.wait(0)
    executor.wait(0)
    with pytest.raises(UserError, match="process 1 has ended or does not answer"):
        executor.wait(0)


@pytest.mark.parametrize(
    ("visible", "local_rank", "share"),
    [
        (4, 0, ("cuda:0", "cuda:1")),
        (4, 1, ("cuda:2", "cuda:3")),
        (2, 1, ("cuda:0", "cuda:1")),  # srun lets each process see its own
    ],
)
def test_processes_of_a_machine_share_its_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, share: tuple[str, ...]
) -> None:
    monkeypatch.setattr(env, "find_devices", lambda wanted: [f"cuda:{index}" for index in range(visible)])
    here: Any = SimpleNamespace(world_size=lambda: 4, local_rank=lambda: local_rank)
    assert env._find_share(RunConfig(devices_per_trial=8), here)[0] == share
    with pytest.raises(UserError, match=r"run\.devices_per_trial=6: must be a multiple of 4"):
        env._find_share(RunConfig(devices_per_trial=6), here)
    with pytest.raises(UserError, match=f"run.devices_per_trial=32: allowed: up to {4 * visible}"):
        env._find_share(RunConfig(devices_per_trial=32), here)


def test_only_messages_that_the_driver_signed_are_read(tmp_path: Path) -> None:
    """They are pickles, and anyone on the network can write to a store."""
    folder = StudyFolder(tmp_path / "study")
    key = env._write_key(folder)
    assert stat.S_IMODE(folder.env_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.jobs.stat().st_mode) == 0o700
    assert env._check_signature(folder, env._sign(key, b"a job")) == b"a job"
    assert env._check_signature(folder, env._sign(key, env.END)) == env.END
    for forged in (b"", b"a job", bytes(32) + b"a job", env._sign(key, b"a job") + b"!", env._sign(b"other", b"a job")):
        with pytest.raises(UserError, match="has not signed"):
            env._check_signature(folder, forged)
    env._write_key(folder)
    with pytest.raises(UserError, match="has not signed"):  # of a driver that has ended
        env._check_signature(folder, env._sign(key, b"a job"))
    with pytest.raises(UserError, match="all processes need the same folder"):
        env._check_signature(StudyFolder(tmp_path / "another"), env._sign(key, b"a job"))
