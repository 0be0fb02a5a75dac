"""Runs trials on a Ray cluster, one task each, or one on each of several nodes that train a trial together.

If a node dies, Ray restarts its tasks on other nodes; the executor restarts those of a trial on several nodes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from study.config.errors import UserError
from study.config.rendezvous import Rendezvous
from study.config.schema import LaunchConfig, RunConfig, StudyConfig
from study.plan.job import Job, split_processes
from study.record.layout import StudyFolder
from study.sweep.executors.base import STOP_GRACE_SECONDS
from study.sweep.executors.follower_node import join_trials
from study.sweep.executors.resources import check_job_resources, find_free_port
from study.sweep.executors.worker import work
from study.training.preemption import handle_signals

CONNECT_TIMEOUT_SECONDS = 5.0


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None) -> RayExecutor:
    """Connects to the cluster at `launch.address`, $RAY_ADDRESS, or on this machine."""
    return RayExecutor(study.launch, study.run)


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """The tasks of a process of the local executor, one per node, the first node's first.

    group: Ray's placement group of several nodes; None for one. restarts: how often they may still be restarted.
    """

    jobs: Sequence[Job]
    tasks: Sequence[Any]
    group: Any = None
    restarts: int = 0


class RayExecutor:
    """One Ray task per trial and node, with `launch.cpus`, `launch.gpus` (also a fraction) and `launch.memory`."""

    outlives_driver = False
    free = 10**9  # Ray has a queue

    def __init__(self, launch: LaunchConfig, run: RunConfig) -> None:
        check_job_resources(launch, run)
        self.ray = _connect(launch)
        self.launch = launch
        self.places = _count_places([node["Resources"] for node in self.ray.nodes() if node["Alive"]], launch)
        resources = {"num_cpus": launch.cpus, "num_gpus": launch.gpus, "memory": _parse_bytes(launch.memory)}
        self.train = self.ray.remote(**resources, max_retries=launch.requeues)(_train)
        self.running: list[_Placement] = []

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Returns no trials: Ray ends the tasks of a driver that has ended."""
        return set()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues the tasks of each trial, or of those of a group."""
        place = self._place_on_node if self.launch.nodes == 1 else self._place_on_nodes
        self.running += [place(own) for own in split_processes(jobs)]

    def wait(self, seconds: float) -> dict[str, str]:
        """Returns the trials whose task has ended: that on the first node, or by an error that on any."""
        if not self.running:
            time.sleep(seconds)
            return {}
        tasks = [task for placement in self.running for task in placement.tasks]
        ready = set(self.ray.wait(tasks, num_returns=len(tasks), timeout=seconds)[0])
        ended: dict[str, str] = {}
        for placement in list(self.running):
            errors = [error for task in placement.tasks if task in ready and (error := self._find_error(task))]
            if not errors and placement.tasks[0] not in ready:
                continue
            self.running.remove(placement)
            self._release(placement)
            is_lost = any(not isinstance(error, self.ray.exceptions.RayTaskError) for error in errors)
            if is_lost and placement.restarts:
                self.running.append(self._place_on_nodes(placement.jobs, placement.restarts - 1))
            else:
                ending = f"was lost by Ray: {type(errors[0]).__name__}" if errors else "has ended"
                ended |= dict.fromkeys((job.trial.key for job in placement.jobs), ending)
        return ended

    def count_waiting(self) -> dict[str, int]:
        """Returns nothing: Ray gives no reasons."""
        return {}

    def cancel(self) -> None:
        """Does the same as `close`."""
        self.close()

    def close(self) -> None:
        """Cancels the tasks and disconnects. A running trial writes a checkpoint and stops."""
        for placement in self.running:
            self.ray.cancel(placement.tasks[0], force=False)  # it stops the other ranks, too
        self.running.clear()
        self.ray.shutdown()

    def _place_on_node(self, jobs: Sequence[Job]) -> _Placement:
        task = self.train.options(name=jobs[0].trial.key).remote(jobs, self.launch, os.getcwd())
        return _Placement(jobs=jobs, tasks=[task])

    def _place_on_nodes(self, jobs: Sequence[Job], restarts: int | None = None) -> _Placement:
        """Queues a task on each of `launch.nodes` nodes. They start together, when as many nodes have room."""
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        launch = self.launch
        bundle = {"CPU": launch.cpus, "GPU": launch.gpus, "memory": _parse_bytes(launch.memory) or 0}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        group = placement_group([bundle] * launch.nodes, strategy="STRICT_SPREAD")
        places = [PlacementGroupSchedulingStrategy(group, index) for index in range(launch.nodes)]
        find = self.ray.remote(num_cpus=0, scheduling_strategy=places[0])(_find_rendezvous)
        first = find.remote(launch)
        options = {"name": jobs[0].trial.key, "max_retries": 0}
        tasks = [
            self.train.options(**options, scheduling_strategy=place).remote(jobs, launch, os.getcwd(), first, node)
            for node, place in enumerate(places)
        ]
        restarts = launch.requeues if restarts is None else restarts
        return _Placement(jobs=jobs, tasks=tasks, group=group, restarts=restarts)

    def _release(self, placement: _Placement) -> None:
        """Frees the nodes of a trial. Ray kills what still runs there: the processes that join the first node's."""
        if placement.group is not None:
            from ray.util import remove_placement_group

            remove_placement_group(placement.group)

    def _find_error(self, task: Any) -> Exception | None:
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            caught: Exception = error
            return caught
        return None


def _train(
    jobs: Sequence[Job], launch: LaunchConfig, folder: str, first: Rendezvous | None = None, node: int = 0
) -> None:
    """The task: trains a trial, or those of a group, in a process of their own, as the other executors do.

    folder: working directory of the driver, which relative paths of data sets start from; Ray's is that of `ray start`.
    first: the rendezvous as the first node sees it, if there are several. node: index of this one.
    """
    import ray

    with contextlib.suppress(OSError):  # a node may lack it where all paths are absolute
        os.chdir(folder)
    place = f"ray node {ray.get_runtime_context().get_node_id()[:8]}"
    with handle_signals() as stop_request:
        if first is not None and node:
            rendezvous = replace(first, node=node)
            join_trials(jobs, launch, stop_request, grace=STOP_GRACE_SECONDS, rendezvous=rendezvous)
        else:
            work(jobs, launch, stop_request, place=place, grace=STOP_GRACE_SECONDS, rendezvous=first)


def _find_rendezvous(launch: LaunchConfig) -> Rendezvous:
    """A task on the first node of a trial: its address, and a port that is free."""
    import ray

    address, port = ray.util.get_node_ip_address(), find_free_port()
    return Rendezvous(nodes=launch.nodes, node=0, address=address, port=port, interface=launch.interface)


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
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, or name one with --set launch.address=HOST:PORT"
        raise UserError(f"--launcher ray: no cluster at {address}: {str(error).splitlines()[0]}; {hint}") from None
    signal.signal(signal.SIGTERM, on_terminate)  # Ray's handler prints a stack trace and lets no trial stop in order
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


def _count_places(nodes: Sequence[dict[str, float]], launch: LaunchConfig) -> int:
    """Returns how many trials the cluster trains at once. Raises `UserError` if it is too small for one.

    nodes: the resources of each node.
    """
    wanted = {"CPU": float(launch.cpus), "GPU": launch.gpus, "memory": _parse_bytes(launch.memory) or 0}
    wanted = {name: amount for name, amount in wanted.items() if amount}
    for name, amount in wanted.items():
        largest = sorted((node.get(name, 0) for node in nodes), reverse=True)
        if len(nodes) < launch.nodes or amount > largest[launch.nodes - 1]:
            each = f" on each of {launch.nodes} nodes" if launch.nodes > 1 else ""
            have = " and ".join(f"{number:g}" for number in largest[:8])
            raise UserError(f"launch: a trial needs {amount:g} {name}{each}; the cluster's nodes have {have}")
    tasks = [int(min(node.get(name, 0) // amount for name, amount in wanted.items())) for node in nodes]
    return sum(tasks) // launch.nodes


def _parse_bytes(memory: str | None) -> int | None:
    if memory is None:
        return None
    number = memory.rstrip("B")
    return int(number[:-1]) << 10 * (1 + "KMGT".index(number[-1]))
