"""The interface between the driver and the executors, which run trials in a pool of processes or on a cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from study.plan.job import Job

STOP_GRACE_SECONDS = 30.0  # for a trial to finish its step and write a checkpoint


class Executor(Protocol):
    """Runs jobs, and reports which trials have ended. Their outcome is read from their records.

    Attributes:
        places: Number of processes that train at once, for estimates of time.
        free: Number of processes or jobs that it can start now, or add to its queue.
        outlives_driver: Whether jobs continue after the driver has ended.
    """

    places: int
    outlives_driver: bool

    @property
    def free(self) -> int: ...

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Returns those of the trials that an earlier driver submitted and that are still queued or running."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts jobs, or adds them to the cluster's queue. Those of a group share a process."""

    def wait(self, seconds: float) -> dict[str, str]:
        """Waits at most `seconds` for trials to end; returns their keys and how they ended, such as `CANCELLED`."""

    def count_waiting(self) -> Mapping[str, int]:
        """Returns how many trials wait in the cluster's queue, by reason."""

    def cancel(self) -> None:
        """Ends all jobs, also those in the queue."""

    def close(self) -> None:
        """Ends the jobs that do not outlive the driver. Called when the driver ends."""
