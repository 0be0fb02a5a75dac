"""The interface between the driver and whatever places work: a local pool here, a cluster's engine elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from study.plan.job import Job


class Executor(Protocol):
    """Places jobs. What became of a job is read from its record; this says only that nothing works on it any more.

    places: trials that run at once, to forecast from. limit: trials that it takes, running or in its queue.
    outlives_driver: whether jobs go on when the driver has gone.
    """

    places: int
    limit: int
    outlives_driver: bool

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Those of the trials that an earlier driver has left with the engine: they count as submitted."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts jobs, or queues them with the engine."""

    def wait(self, seconds: float) -> dict[str, str]:
        """Keys of the trials that have ended, after `seconds` at most, and how."""

    def cancel(self) -> None:
        """Ends everything, in the queue too."""

    def close(self) -> None:
        """The driver goes: ends what cannot go on without it."""
