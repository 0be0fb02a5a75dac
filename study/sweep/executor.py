"""The interface between the driver and whatever places work: a local pool here, a cluster's engine elsewhere."""

from __future__ import annotations

from typing import Protocol

from study.job import Job


class Executor(Protocol):
    """Places jobs. What became of a job is read from its record; this says only that its process has ended."""

    capacity: int

    def submit(self, job: Job) -> None:
        """Starts a job, or queues it with the engine."""

    def wait(self, seconds: float) -> dict[str, str]:
        """Keys of the trials that have ended within `seconds`, and how."""

    def close(self) -> None:
        """Ends everything that runs."""
