"""Timing on a machine with other load: contenders take turns, and are compared within each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Contenders = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]  # per call, one number per round


def time_in_turns(contenders: Contenders, *, seconds: float = 0.5, rounds: int = 7, device: str = "cpu") -> Seconds:
    """Seconds per call of every contender, one number per round. A round gives each about `seconds / rounds`.

    Every contender is called twice before the clock starts, and its calls in one round are repeated until they take
    long enough to be timed. Odd rounds reverse the order, so that no contender always finds a warm cache or a hot core.
    """
    repeats: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        once = _time(call, 1, device)
        repeats[name] = max(1, round(seconds / rounds / max(once, 1e-7)))
    times: Seconds = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            times[name].append(_time(contenders[name], repeats[name], device))
    return times


def median_ratio(times: Seconds, contender: str, reference: str) -> float:
    """Median over rounds of the time of `contender` divided by that of `reference`."""
    return statistics.median(a / b for a, b in zip(times[contender], times[reference], strict=True))


def _time(call: Callable[[], object], repeats: int, device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: str) -> None:
    """Waits for the kernels that have been launched. On the CPU, work is done when a call returns."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
