"""Decides what follows when a trial's process or job has ended: it has a result, is tried again, or is abandoned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from study.record.layout import TrialFolder

CANCELLED = "was cancelled"  # begins the end of a trial whose job a user has cancelled in the cluster's queue

NextStep = Literal["done", "cancelled", "elsewhere", "retry", "give up"]


@dataclass(kw_only=True)
class RetryPolicy:
    """How often a trial that ended without a result is tried again.

    A trial may fail by an exception `max_attempts` times; its record counts these failures over all restarts of the
    driver. It may be killed as often, and be interrupted by a signal `requeues` times; these are counted here only, so
    that a restarted driver tries the trial again.
    """

    max_attempts: int
    requeues: int
    kills: Counter[str] = field(default_factory=Counter)  # by trial key; failures count too
    interruptions: Counter[str] = field(default_factory=Counter)

    def next_step(self, record: TrialFolder, ending: str) -> tuple[NextStep, str]:
        """Returns what follows the end of a trial's process or job, and why there is no result.

        `cancelled` means that a user has cancelled its job in the cluster's queue. `elsewhere` means that another
        process holds the trial's lock, such as one that an earlier driver or another node left: its record will come.
        `ending` describes the end, for a trial whose record gives no reason.
        """
        if record.read_result() is not None:
            return "done", ""
        if ending.startswith(CANCELLED):
            return "cancelled", ending
        if record.is_locked():
            return "elsewhere", ""
        state = record.read_state()
        if state.get("state") == "interrupted":
            self.interruptions[record.key] += 1
            retry = self.interruptions[record.key] <= self.requeues
            return "retry" if retry else "give up", str(state.get("reason"))
        self.kills[record.key] += 1
        attempts = max(self.kills[record.key], record.attempts()[1])
        reason = str(state.get("reason")) if state.get("state") == "failed" else f"its process {ending}"
        return "retry" if attempts < self.max_attempts else "give up", reason
