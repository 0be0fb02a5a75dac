"""Preemption: a signal sets a flag, which a trial reads after every step to stop with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from study.config.signals import STOP_SIGNALS


class PreemptedError(Exception):
    """The trial was asked to stop, and has stopped after a checkpoint. This does not count as a failure."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"{reason} after step {step}")
        self.step = step


class StopRequest:
    """The name of the first signal that asked this process to stop, or None."""

    signal: str | None = None

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The signal handler. Setting a flag is all that is safe at any moment."""
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def handle_signals(handled: StopRequest | None = None) -> Iterator[StopRequest]:
    """Inside the context, `STOP_SIGNALS` set the flag instead of ending the process.

    They are unblocked, so that those that arrived while this process started are handled, too. Only the main thread can
    set signal handlers; in any other thread nothing changes.

    handled: the flag, if the caller has set handlers itself.
    """
    stop_request = handled or StopRequest()
    if handled or threading.current_thread() is not threading.main_thread():
        yield stop_request
        return
    before = {number: signal.signal(number, stop_request.handle) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        yield stop_request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
