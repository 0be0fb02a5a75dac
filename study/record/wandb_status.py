"""How a trial stands, as the tags, the notes and the summary of its W&B run. Imports no W&B."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from study.record.contents import FINISHED

# Of a trial whose process has ended without a result, by the state in state.json.
_WITHOUT_RESULT = {"failed": "failed", "interrupted": "preempted", "running": "killed"}
_QUIET = ("running", "done")  # statuses that need no note
_STATUSES = (*FINISHED, "running", *_WITHOUT_RESULT.values())
_OWN_NOTE = re.compile(rf"attempt \d+: ({'|'.join(_STATUSES)})\b")
MAX_TAG, MAX_NOTE = 64, 1000  # characters; W&B refuses longer tags


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of a trial at its last attempt, with the reason for it, and the metrics of its result."""

    status: str
    attempt: int
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the trial has a result; W&B shows others as failed, or as preempted."""
        return self.status in FINISHED

    @property
    def summary(self) -> dict[str, Any]:
        return {"status": self.status, **self.metrics}

    def update_tags(self, known: Iterable[str], levels: Mapping[str, Any]) -> list[str]:
        """The tags of a run that has `known` ones: those of the user stay."""
        own = [f"{factor}={level}"[:MAX_TAG] for factor, level in levels.items()]
        own += [] if self.status in _QUIET else [self.status]
        return [*own, *(tag for tag in known if tag not in (*own, *_STATUSES))]

    def update_notes(self, known: str) -> str:
        """The notes of a run that has `known` ones: those of the user stay. W&B does not empty notes."""
        if known and not _OWN_NOTE.match(known):
            return known
        if not known and self.status in _QUIET:
            return ""
        return ": ".join(filter(None, (f"attempt {self.attempt}", self.status, self.reason)))[:MAX_NOTE]


def describe_end(result: Mapping[str, Any] | None, state: Mapping[str, Any]) -> RunStatus:
    """The status of a trial that no process trains.

    result: the content of result.json, if the trial has finished. state: that of state.json.
    """
    if result is not None:
        return RunStatus(
            status=result["status"], attempt=result.get("attempts") or state.get("attempt", 1),
            reason=result.get("reason") or "", metrics=result["metrics"],
        )  # fmt: skip
    status = _WITHOUT_RESULT.get(state.get("state", "running"), "failed")
    killed = "its process ended without giving a reason" if status == "killed" else ""
    return RunStatus(status=status, attempt=state.get("attempt", 1), reason=state.get("reason") or killed)
