"""A study on a Ray cluster of two nodes has the same numbers as on one machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from study.config.errors import UserError
from study.config.schema import LaunchConfig
from study.record.io import read_json
from study.record.layout import StudyFolder
from study.sweep.executors import ray as executor_module
from tests.conftest import ROOT, Run
from tests.services.fixtures import add_second_node

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SETTINGS = ("tracking.mode=disabled", "epochs=1", "norm=sn")


def on_ray(address: str, *settings: str) -> tuple[str, ...]:
    settings = (*SETTINGS, f"launch.address={address}", *settings)
    flags = (part for setting in settings for part in ("--set", setting))
    return ("--study", "depth_vs_batch", "--scale", "smoke", "--launcher", "ray", *flags)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_on_two_nodes_has_the_numbers_of_a_local_one(
    ray_cluster: Cluster, run_study: Run, tmp_path: Path, local_numbers: Callable[..., dict[str, Any]]
) -> None:
    from tests.training.test_resume import all_numbers

    done = run_study(*on_ray(ray_cluster.address, "launch.cpus=2"), out="runs")  # a node has two
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to 2 trials at once" in done.stdout
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    places = {read_json(trial.state)["job"] for trial in folder.trials()}
    assert len(places) == 2, places
    assert all_numbers(folder) == local_numbers(*SETTINGS)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("launch.gpus=2",), "a trial needs 2 GPU; the cluster's nodes have 1 and 0"),
        (
            ("launch.gpus=1", "launch.nodes=2", "run.devices_per_trial=2"),
            "a trial needs 1 GPU on each of 2 nodes; the cluster's nodes have 1 and 0",
        ),
    ],
)
def test_more_than_the_cluster_has_is_one_line(
    ray_cluster: Cluster, run_study: Run, settings: tuple[str, ...], complaint: str
) -> None:
    refused = run_study(*on_ray(ray_cluster.address, *settings))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert complaint in refused.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense:port"])
def test_an_address_where_nothing_answers_is_an_error(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=f"launch.address={address}: no Ray cluster answers there"):
        executor_module._connect(LaunchConfig(address=address))


def test_places_are_the_trials_that_the_cluster_trains_at_once() -> None:
    cluster = [{"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34}, {"CPU": 5.0}]
    assert executor_module._count_places(cluster, LaunchConfig(cpus=2)) == 6
    assert executor_module._count_places(cluster, LaunchConfig(gpus=0.25)) == 8
    assert executor_module._count_places(cluster, LaunchConfig(cpus=0.5)) == 26
    assert executor_module._count_places(cluster, LaunchConfig(memory="8G")) == 2
    assert executor_module._count_places(cluster, LaunchConfig(cpus=2, nodes=2)) == 3
    for launch, complaint in (
        (LaunchConfig(cpus=16), "needs 16 CPU; the cluster's nodes have 8 and 5"),
        (LaunchConfig(cpus=8, nodes=2), "needs 8 CPU on each of 2 nodes"),
        (LaunchConfig(nodes=3), "needs 1 CPU on each of 3 nodes"),
    ):
        with pytest.raises(UserError, match=complaint):
            executor_module._count_places(cluster, launch)


def test_ray_does_not_replace_the_drivers_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        init=lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        _private=SimpleNamespace(worker=SimpleNamespace()),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    before = signal.getsignal(signal.SIGTERM)
    executor_module._connect(LaunchConfig())
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_ray_reports_of_a_dead_node_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = (
        "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL. Last 20 lines:\n"
        "    [state-dump] DebugString() time ms: 0\n"
    )
    executor_module._print_first_line({"lines": [report], "pid": "raylet", "is_err": False}, False)
    assert capsys.readouterr().out == "Ray: Raylet is terminated\n"


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_over_two_nodes_of_which_one_dies_has_the_numbers_of_one_machine(
    ray_cluster: Cluster, tmp_path: Path, local_numbers: Callable[..., dict[str, Any]]
) -> None:
    from tests.training.test_resume import all_numbers

    settings = ("epochs=12", "batch_size=2", "chunks=2", "dropout=0.2", "checkpoint_seconds=0",
                "run.devices_per_trial=2")  # fmt: skip
    command = [ROOT / "run_study.py", *on_ray(ray_cluster.address, *settings, "launch.nodes=2")]
    driver = subprocess.Popen([sys.executable, *command, "--out", tmp_path / "runs"])
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    deadline = time.monotonic() + 120
    while not any(trial.last_checkpoint.exists() for trial in folder.trials()):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (second,) = ray_cluster.worker_nodes
    add_second_node(ray_cluster)
    ray_cluster.remove_node(second, allow_graceful=False)
    assert driver.wait(200) == 0
    (trial,) = folder.trials()
    assert trial.attempts()[0] > 1
    assert all_numbers(folder) == local_numbers(*SETTINGS, *settings)
