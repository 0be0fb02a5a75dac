"""What other tests rely on in the services."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services.fixtures import Postgres

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def wait_for(text: str, file: Path, seconds: float = 150) -> float:
    """Waits until a file contains a text; returns the seconds."""
    started = time.monotonic()
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < started + seconds, file.read_text() if file.exists() else "no output"
        time.sleep(0.1)
    return time.monotonic() - started


SCRIPT = """#!/bin/bash
echo "started ${SLURM_RESTART_COUNT:-0}"
trap 'echo received SIGTERM; exit 1' TERM
while :; do sleep 0.1; done
"""


def submit(tmp_path: Path, *flags: str) -> tuple[str, Path]:
    """Submits a job that ends on SIGTERM; returns its id and its output file."""
    script, output = tmp_path / "job.sh", tmp_path / "output"
    script.write_text(SCRIPT)
    flags = ("--parsable", "--requeue", "--open-mode=append", f"--output={output}", *flags)
    return call("sbatch", *flags, str(script)), output


@pytest.mark.slurm
def test_slurm_runs_a_step_with_a_gpu(slurm: Path) -> None:
    assert call("srun", "--gres=gpu:1", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES") == "0"


@pytest.mark.slurm
def test_slurm_runs_an_array_through_submitit(slurm: Path, tmp_path: Path) -> None:
    import submitit

    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_array_parallelism=4)
    jobs = executor.map_array(divmod, [7, 8], [2, 3])
    for job in jobs:  # not `job.done()`: it calls sacct, which answers nothing without accounting
        wait_for("completed successfully", job.paths.stdout)
    assert [job.result() for job in jobs] == [(3, 1), (2, 2)]


@pytest.mark.slurm
def test_slurm_starts_a_requeued_job_again_within_seconds(slurm: Path, tmp_path: Path) -> None:
    job, output = submit(tmp_path)
    wait_for("started 0", output)
    call("scontrol", "requeue", job)
    assert wait_for("started 1", output) < 60  # Slurm's default is two minutes
    assert "received SIGTERM" in output.read_text()
    call("scancel", job)


@pytest.mark.slurm
def test_slurm_requeues_a_low_job_for_one_of_the_main_partition(slurm: Path, tmp_path: Path) -> None:
    job, output = submit(tmp_path, "--partition=low", "--nodes=2", "--exclusive")
    wait_for("started 0", output)
    assert call("srun", "--cpus-per-task=4", "echo", "mine") == "mine"
    wait_for("started 1", output)
    call("scancel", job)


@pytest.mark.postgres
def test_postgres_answers_after_a_restart(postgres: Postgres) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(postgres.url, poolclass=sa.NullPool)
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT 1")).scalar() == 1
        postgres.stop()
        with pytest.raises(sa.exc.OperationalError):
            engine.connect()
        postgres.start()


@pytest.mark.ray
def test_ray_runs_a_task_on_each_node(ray_cluster: Cluster) -> None:
    import ray

    with ray.init(ray_cluster.address, log_to_driver=False):
        where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
        nodes = ray.get([where.options(resources={name: 1}).remote() for name in ("first", "second")], timeout=60)
    assert len(set(nodes)) == 2
