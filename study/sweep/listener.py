"""The events that a driver reports while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from study.plan.trials import PlannedTrial


class SweepListener:
    """Receives the events of a sweep. This one ignores them; `study/cli/progress.py` shows them.

    A driver calls `begin` once, then uses the listener as a context manager around the sweep.
    """

    def begin(self, total: int, places: int, *, queued: bool) -> None:
        """The sweep begins: `total` trials are planned and up to `places` run at once.

        `queued`: the cluster's queue decides which of the submitted trials run.
        """

    def replan(self, total: int) -> None:
        """`total` trials are planned: fewer than before, as a search has suggested a cell again."""

    def __enter__(self) -> SweepListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The sweep is over."""

    def expect(self, key: str, cost: float) -> None:
        """A trial is to be trained; `cost` is its relative duration."""

    def follow(self, running: Mapping[str, PlannedTrial]) -> None:
        """`running` holds the trials that run or wait in the cluster's queue; the driver keeps it up to date."""

    def skip(self, status: str) -> None:
        """A trial already had a result with this status."""

    def finished(self, key: str, result: dict[str, Any]) -> None:
        """A trial has a result."""

    def retrying(self, key: str, reason: str) -> None:
        """A trial ended without a result and is tried again."""

    def cancelled(self, key: str, reason: str) -> None:
        """A trial's job was cancelled in the cluster's queue; this driver does not submit it again."""

    def waiting(self, trials: Mapping[str, int]) -> None:
        """So many trials wait in the cluster's queue, by reason. Called often."""

    def failed(self, key: str, reason: str, where: object = None, *, before: bool = False) -> None:
        """A trial is abandoned; `where` names its log. `before`: it had already failed when this driver started."""

    def stopping(self, note: str) -> None:
        """The sweep was interrupted and waits for its trials to write a checkpoint."""

    def message(self, text: str, style: str = "") -> None:
        """Something that the user should know."""
