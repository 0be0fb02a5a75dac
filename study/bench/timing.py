"""Timing that a busy machine cannot fool much: contenders alternate, and medians of ratios within a round count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = dict[str, list[float]]


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.5,
    rounds: int = 7,
    synchronize: Callable[[], None] = lambda: None,
) -> Seconds:
    """Seconds a call of every contender, one number a round. A round gives each about `seconds / rounds`.

    Every contender is called twice before the clock starts, and calls of one round are repeated until they are long
    enough to be timed. In odd rounds the order is reversed: nobody always runs on a warm cache, or on a hot core.
    """
    repeats: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        once = _time(call, 1, synchronize)
        repeats[name] = max(1, round(seconds / rounds / max(once, 1e-7)))
    times: Seconds = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            times[name].append(_time(contenders[name], repeats[name], synchronize))
    return times


def ratio(times: Seconds, contender: str, reference: str) -> float:
    """Median over rounds of how many times dearer `contender` is than `reference`."""
    return statistics.median(a / b for a, b in zip(times[contender], times[reference], strict=True))


def median(values: Sequence[float]) -> float:
    """Median seconds."""
    return statistics.median(values)


def _time(call: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats
