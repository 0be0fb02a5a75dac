"""Runs trials on a Ray cluster, a task each. Ray starts a task again on another node when its own dies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig
from study.plan.job import Job
from study.sweep.executors.resources import check_room
from study.sweep.executors.worker import work

ANSWER_SECONDS = 5.0
GRACE_SECONDS = 30.0


class RayExecutor:
    """One task a trial: Ray finds it a node with `launch.cpus`, `launch.gpus` (a fraction, too) and `launch.memory`."""

    outlives_driver = False
    limit = 10**9  # Ray queues

    def __init__(self, launch: LaunchConfig, run: RunConfig) -> None:
        check_room(launch, run)
        self.ray = _connect(launch)
        self.launch = launch
        self.places = _count_places(self.ray.cluster_resources(), launch)
        resources = {"num_cpus": launch.cpus, "num_gpus": launch.gpus, "memory": _bytes(launch.memory)}
        self.train = self.ray.remote(**resources, max_retries=launch.requeues)(_train)
        self.running: dict[Any, str] = {}

    def reattach(self, keys: Collection[str]) -> set[str]:
        """None: Ray ends the tasks of a driver that has gone."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues a task for each."""
        for job in jobs:
            self.running[self.train.options(name=job.trial.key).remote(job, self.launch)] = job.trial.key

    def wait(self, seconds: float) -> dict[str, str]:
        """Trials whose task has ended."""
        if not self.running:
            time.sleep(seconds)
            return {}
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=seconds)
        return {self.running.pop(task): self._describe(task) for task in ready}

    def cancel(self) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Cancels what is queued and lets go of the cluster; a running trial leaves when it sees that."""
        for task in self.running:
            self.ray.cancel(task, force=False)
        self.running.clear()
        self.ray.shutdown()

    def _describe(self, task: Any) -> str:
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return f"was lost by Ray: {type(error).__name__}"
        return "has ended"


def _train(job: Job, launch: LaunchConfig) -> None:
    """The task: a trial in a process of its own, as everywhere else."""
    import ray

    node = ray.get_runtime_context().get_node_id()[:8]
    work([job], launch, place=f"ray node {node}", grace=GRACE_SECONDS)


def _connect(launch: LaunchConfig) -> Any:
    """Joins a cluster that is there. Raises `UserError` where none is."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--launcher ray: Ray is not installed; pip install 'normalizer-study[ray]', or take --launcher local"
        ) from None
    address = launch.address or os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        _check_answer(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, or name one with --set launch.address=HOST:PORT"
        raise UserError(f"--launcher ray: no cluster at {address}: {str(error).splitlines()[0]}; {hint}") from None
    return ray


def _check_answer(address: str) -> None:
    """Ray itself would try for a minute."""
    place = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        host, port = place.hostname, place.port or (10001 if place.scheme == "ray" else 6379)
        socket.create_connection((host or "", port), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(f"launch.address={address}: no Ray cluster answers there: {error}") from None


def _count_places(resources: dict[str, float], launch: LaunchConfig) -> int:
    """Tasks that the cluster runs at once. Raises `UserError` where it will never run one."""
    wanted = {"CPU": float(launch.cpus), "GPU": launch.gpus, "memory": _bytes(launch.memory) or 0}
    for name, amount in wanted.items():
        if amount > resources.get(name, 0):
            raise UserError(f"launch: a trial asks for {amount:g} {name}; the cluster has {resources.get(name, 0):g}")
    return int(min(resources[name] // amount for name, amount in wanted.items() if amount))


def _bytes(memory: str | None) -> int | None:
    if memory is None:
        return None
    number = memory.rstrip("B")
    return int(number[:-1]) << 10 * (1 + "KMGT".index(number[-1]))
