"""How often a trial that has ended without a result is tried again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from study.record.io import read_json
from study.record.layout import TrialFolder

NextStep = Literal["done", "elsewhere", "again", "given up"]


@dataclass(kw_only=True)
class RetryPolicy:
    """How often a trial that has ended without a result is tried again.

    A trial may fail by itself `max_attempts` times, counted in its record over all restarts. It may be killed as
    often, and leave on a signal `requeues` times, counted here: neither is held against it.
    """

    max_attempts: int
    requeues: int
    ends: Counter[str] = field(default_factory=Counter)
    leaves: Counter[str] = field(default_factory=Counter)

    def judge(self, record: TrialFolder, how: str) -> tuple[NextStep, str]:
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
