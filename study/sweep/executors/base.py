"""The interface between the driver and whatever places work: a local pool here, a cluster's engine elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from study.plan.job import Job
from study.record.layout import TrialFolder, read_json


class Executor(Protocol):
    """Places jobs. What became of a job is read from its record; this says only that nothing works on it any more.

    places: trials that run at once, to forecast from. limit: trials that it takes, running or in its queue.
    outlives_driver: whether jobs go on when the driver has gone.
    """

    places: int
    limit: int
    outlives_driver: bool

    def adopt(self, keys: Collection[str]) -> set[str]:
        """Those of the trials that an earlier driver has left with the engine: they count as submitted."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Starts jobs, or queues them with the engine."""

    def wait(self, seconds: float) -> dict[str, str]:
        """Keys of the trials that have ended, after `seconds` at most, and how."""

    def cancel(self) -> None:
        """Ends everything, in the queue too."""

    def close(self) -> None:
        """The driver goes: ends what cannot go on without it."""


Fate = Literal["done", "elsewhere", "again", "given up"]


@dataclass(kw_only=True)
class Retries:
    """How often a trial that has ended without a result is tried again.

    A trial may fail by itself `max_attempts` times, counted in its record over all restarts. It may be killed as
    often, and leave on a signal `requeues` times, counted here: neither is held against it.
    """

    max_attempts: int
    requeues: int
    ends: Counter[str] = field(default_factory=Counter)
    leaves: Counter[str] = field(default_factory=Counter)

    def judge(self, record: TrialFolder, how: str) -> tuple[Fate, str]:
        """What is to become of a trial on which nothing works any more, and why it has no result."""
        if record.read_result() is not None:
            return "done", ""
        if record.is_locked():  # by a process that another driver left, or another node: its record will come
            return "elsewhere", ""
        state = read_json(record.state) or {}
        if state.get("state") == "interrupted":
            self.leaves[record.key] += 1
            return "again" if self.leaves[record.key] <= self.requeues else "given up", str(state.get("reason"))
        self.ends[record.key] += 1
        worst = max(self.ends[record.key], record.attempts()[1])
        reason = str(state.get("reason")) if state.get("state") == "failed" else f"its process {how}"
        return "again" if worst < self.max_attempts else "given up", reason
