"""A study on a Ray cluster of two nodes: the numbers are those of this machine alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from study.config.errors import UserError
from study.config.schema import LaunchConfig
from study.record.io import read_json
from study.record.layout import StudyFolder
from study.sweep.executors import ray as engine
from tests.conftest import Run
from tests.training.test_resume import all_numbers

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

STUDY = ("--study", "depth_vs_batch", "--scale", "smoke", "--set", "tracking.mode=disabled", "--set", "epochs=2",
         "--set", "norm=sn")  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_on_two_nodes_has_the_numbers_of_a_local_one(
    ray_cluster: Cluster, run_study: Run, tmp_path: Path
) -> None:
    done = run_study(*STUDY, "--launcher", "ray", "--set", f"launch.address={ray_cluster.address}",
                     "--set", "launch.cpus=2")  # fmt: skip  # so many has a node
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to 2 trials at once" in done.stdout
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    places = {read_json(trial.state)["job"] for trial in folder.trials()}
    assert len(places) == 2, places
    on_cluster = all_numbers(folder)
    shutil.rmtree(folder.path)
    assert run_study(*STUDY).returncode == 0
    assert all_numbers(folder) == on_cluster


@pytest.mark.ray
def test_what_the_cluster_will_never_have_is_one_line(ray_cluster: Cluster, run_study: Run) -> None:
    asked = ("--launcher", "ray", "--set", f"launch.address={ray_cluster.address}", "--set", "launch.gpus=2")
    refused = run_study(*STUDY, *asked)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert "a trial needs 2 GPU; the cluster has 1" in refused.stderr


def test_an_address_where_nothing_answers_is_one_line(run_study: Run) -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nonsense:port"):
        refused = run_study(*STUDY, "--launcher", "ray", "--set", f"launch.address={address}")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert f"launch.address={address}: no Ray cluster answers there" in refused.stderr


def test_places_are_what_the_cluster_runs_at_once() -> None:
    cluster = {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34}
    assert engine._count_places(cluster, LaunchConfig(cpus=2)) == 4
    assert engine._count_places(cluster, LaunchConfig(gpus=0.25)) == 8
    assert engine._count_places(cluster, LaunchConfig(memory="8G")) == 2
    with pytest.raises(UserError, match="needs 16 CPU; the cluster has 8"):
        engine._count_places(cluster, LaunchConfig(cpus=16))
