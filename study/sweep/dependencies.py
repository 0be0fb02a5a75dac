"""Which trials can run now: a trial that starts from another trial of its study waits until that one has ended."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

from study.plan.trials import PlannedTrial

HAS_WEIGHTS = "done"  # the only status of a result whose weights another trial can start from


class DependencyQueue:
    """Queue of trials in which a trial becomes ready once the trial that it starts from is done.

    Attributes:
        ready: Trials that can run now, in order, by key.
    """

    def __init__(self) -> None:
        self.ready: OrderedDict[str, PlannedTrial] = OrderedDict()
        self._blocked: defaultdict[str, list[PlannedTrial]] = defaultdict(list)
        self._unstartable: list[tuple[PlannedTrial, str]] = []
        self._ended: dict[str, str] = {}

    def put(self, trial: PlannedTrial) -> None:
        """Adds a trial, for its first attempt or for another one."""
        start = trial.waits_for
        status = HAS_WEIGHTS if start is None else self._ended.get(start)
        if status is None:
            self._blocked[str(start)].append(trial)
        elif status == HAS_WEIGHTS:
            self.ready[trial.key] = trial
        else:
            self._unstartable.append((trial, f"its start trial {start} has no weights: {status}"))
            self.mark_ended(trial.key, "failed")

    def pop_ready(self, others: Callable[[PlannedTrial], Collection[str]]) -> list[PlannedTrial]:
        """Removes and returns the first ready trial, and those of `others`, given by key for it, that are ready."""
        _, first = self.ready.popitem(last=False)
        return [first, *(self.ready.pop(key) for key in others(first) if key in self.ready)]

    def mark_ended(self, key: str, status: str) -> None:
        """Releases the trials that wait for `key`; `status` is that of its result, or `failed` if it was abandoned."""
        self._ended[key] = status
        for trial in self._blocked.pop(key, []):
            self.put(trial)

    def pop_blocked(self) -> list[PlannedTrial]:
        """Removes and returns the trials that wait for another, for an executor that handles dependencies itself."""
        blocked = [trial for trials in self._blocked.values() for trial in trials]
        self._blocked.clear()
        return blocked

    def pop_unstartable(self) -> list[tuple[PlannedTrial, str]]:
        """Removes and returns the trials that can never run because their start trial has no weights, with reasons."""
        unstartable, self._unstartable = self._unstartable, []
        return unstartable


def topological_batches(trials: Sequence[PlannedTrial]) -> Iterator[list[PlannedTrial]]:
    """Yields batches in an order such that no trial starts from a trial of its own batch or a later one.

    Trials that others start from come in batches without other trials, so that nothing else delays their dependents.
    """
    needed = {trial.waits_for for trial in trials}
    left = {trial.key: trial for trial in trials}
    while left:
        free = [trial for trial in left.values() if trial.waits_for not in left]
        assert free, "no trial starts from itself"
        for batch in ([trial for trial in free if trial.key in needed], [t for t in free if t.key not in needed]):
            if batch:
                yield batch
        for trial in free:
            del left[trial.key]
