"""Which trials can run now: one that starts from another of its study waits for that one's end."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from study.plan.trials import PlannedTrial

DONE = "done"


class DependencyQueue:
    """Trials that wait for a place, in order, and those that wait for another trial first.

    ready: those that can run. lost: those that never can, and why; whoever sees them takes them out.
    """

    def __init__(self) -> None:
        self.ready: deque[PlannedTrial] = deque()
        self.lost: dict[str, str] = {}
        self.held: defaultdict[str, list[PlannedTrial]] = defaultdict(list)
        self.ended: dict[str, str] = {}

    def put(self, trial: PlannedTrial) -> None:
        """Takes a trial in, for the first time or again."""
        source = trial.waits_for
        end = DONE if source is None else self.ended.get(source)
        if end is None:
            self.held[str(source)].append(trial)
        elif end == DONE:
            self.ready.append(trial)
        else:
            self.lost[trial.key] = f"its start trial {source} has no weights: {end}"
            self.settle(trial.key, "failed")

    def settle(self, key: str, end: str) -> None:
        """Nothing more is expected of a trial: the status of its result, or `failed` for good."""
        self.ended[key] = end
        for trial in self.held.pop(key, []):
            self.put(trial)

    def take_held(self) -> list[PlannedTrial]:
        """Those that wait for another trial, for an engine that keeps them back itself."""
        held = [trial for trials in self.held.values() for trial in trials]
        self.held.clear()
        return held


def topological_batches(trials: Sequence[PlannedTrial]) -> Iterator[list[PlannedTrial]]:
    """Trials such that each wave needs only what is in waves before it; in one by themselves those that others need."""
    needed = {trial.waits_for for trial in trials}
    left = {trial.key: trial for trial in trials}
    while left:
        free = [trial for trial in left.values() if trial.waits_for not in left]
        assert free, "no trial waits for itself"
        for wave in ([trial for trial in free if trial.key in needed], [t for t in free if t.key not in needed]):
            if wave:
                yield wave
        for trial in free:
            del left[trial.key]
