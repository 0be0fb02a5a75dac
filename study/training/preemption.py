"""How a trial is asked to leave: a signal leaves a note, which the trial looks at after every step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class PreemptedError(Exception):
    """The trial was asked to leave, and is ready to: a checkpoint is where it stands. No failure."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"{reason} after step {step}")
        self.step = step


class StopRequest:
    """Which signal has asked this process to leave; the first counts."""

    signal: str | None = None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """A signal handler. All that is safe to do in one is to leave a note."""
        self.signal = self.signal or signal.Signals(number).name


@contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Inside, signals that would end this process leave a note instead. Outside its main thread, nothing changes."""
    leave = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield leave
        return
    before = {number: signal.signal(number, leave.ask) for number in SIGNALS}
    try:
        yield leave
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
