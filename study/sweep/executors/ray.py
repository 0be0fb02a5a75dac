"""Runs trials on a Ray cluster, one task each. Ray restarts a task on another node if its node dies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from study.config.errors import UserError
from study.config.schema import LaunchConfig, RunConfig, StudyConfig
from study.plan.job import Job, split_processes
from study.record.layout import StudyFolder
from study.sweep.executors.base import STOP_GRACE_SECONDS
from study.sweep.executors.resources import check_job_resources
from study.sweep.executors.worker import work
from study.training.preemption import handle_signals

CONNECT_TIMEOUT_SECONDS = 5.0


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None) -> RayExecutor:
    """Connects to the cluster at `launch.address`, $RAY_ADDRESS, or on this machine."""
    return RayExecutor(study.launch, study.run)


class RayExecutor:
    """One Ray task per trial, with `launch.cpus`, `launch.gpus` (also a fraction) and `launch.memory`."""

    outlives_driver = False
    free = 10**9  # Ray has a queue

    def __init__(self, launch: LaunchConfig, run: RunConfig) -> None:
        check_job_resources(launch, run)
        self.ray = _connect(launch)
        self.launch = launch
        self.places = _count_places(self.ray.cluster_resources(), launch)
        resources = {"num_cpus": launch.cpus, "num_gpus": launch.gpus, "memory": _parse_bytes(launch.memory)}
        self.train = self.ray.remote(**resources, max_retries=launch.requeues)(_train)
        self.running: dict[Any, list[str]] = {}  # keys of the trials of each task

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Returns no trials: Ray ends the tasks of a driver that has ended."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues a task for each trial, or for those of a group."""
        for own in split_processes(jobs):
            keys = [job.trial.key for job in own]
            self.running[self.train.options(name=keys[0]).remote(own, self.launch)] = keys

    def wait(self, seconds: float) -> dict[str, str]:
        """Returns the trials whose task has ended."""
        if not self.running:
            time.sleep(seconds)
            return {}
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=seconds)
        return {
            key: ending for task in ready for ending in [self._describe_end(task)] for key in self.running.pop(task)
        }

    def count_waiting(self) -> dict[str, int]:
        """Returns nothing: Ray gives no reasons."""
        return {}

    def cancel(self) -> None:
        """Does the same as `close`."""
        self.close()

    def close(self) -> None:
        """Cancels the tasks and disconnects. A running trial writes a checkpoint and stops."""
        for task in self.running:
            self.ray.cancel(task, force=False)
        self.running.clear()
        self.ray.shutdown()

    def _describe_end(self, task: Any) -> str:
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return f"was lost by Ray: {type(error).__name__}"
        return "has ended"


def _train(jobs: Sequence[Job], launch: LaunchConfig) -> None:
    """The task: trains a trial, or those of a group, in a process of their own, as the other executors do."""
    import ray

    node = ray.get_runtime_context().get_node_id()[:8]
    with handle_signals() as stop_request:
        work(jobs, launch, stop_request, place=f"ray node {node}", grace=STOP_GRACE_SECONDS)


def _connect(launch: LaunchConfig) -> Any:
    """Connects to a running cluster; returns the module `ray`. Raises `UserError` if there is none."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--launcher ray: Ray is not installed; pip install 'normalizer-study[ray]', or use --launcher local"
        ) from None
    address = launch.address or os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, or name one with --set launch.address=HOST:PORT"
        raise UserError(f"--launcher ray: no cluster at {address}: {str(error).splitlines()[0]}; {hint}") from None
    # Without it, the death of a node prints the state of its raylet, twice. Ray has no setting for this.
    ray._private.worker.print_to_stdstream = _print_first_line
    return ray


def _print_first_line(message: dict[str, Any], ignore_prefix: bool) -> None:
    """Prints the first sentence of what Ray reports to a driver."""
    for text in message["lines"]:
        print(f"Ray: {text.splitlines()[0].partition('. ')[0]}", flush=True)


def _check_address(address: str) -> None:
    """Raises `UserError` if nothing listens at an address. `ray.init` would retry for a minute."""
    url = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    try:
        host, port = url.hostname, url.port or (10001 if url.scheme == "ray" else 6379)
        socket.create_connection((host or "", port), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(f"launch.address={address}: no Ray cluster answers there: {error}") from None


def _count_places(resources: dict[str, float], launch: LaunchConfig) -> int:
    """Returns how many tasks the cluster runs at once. Raises `UserError` if it is too small for one."""
    wanted = {"CPU": float(launch.cpus), "GPU": launch.gpus, "memory": _parse_bytes(launch.memory) or 0}
    for name, amount in wanted.items():
        if amount > resources.get(name, 0):
            raise UserError(f"launch: a trial needs {amount:g} {name}; the cluster has {resources.get(name, 0):g}")
    return int(min(resources[name] // amount for name, amount in wanted.items() if amount))


def _parse_bytes(memory: str | None) -> int | None:
    if memory is None:
        return None
    number = memory.rstrip("B")
    return int(number[:-1]) << 10 * (1 + "KMGT".index(number[-1]))
