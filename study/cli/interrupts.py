"""Ctrl-C, SIGTERM and SIGHUP end the program in one line, from its first import on. Imports nothing that takes time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


def run_interruptible(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code: 130 after Ctrl-C, SIGTERM or SIGHUP, which stays ignored under nohup."""
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        """Raises KeyboardInterrupt. SIGTERM and SIGHUP do so once: a second one must not end the last checkpoints."""
        received.append(number)
        if number != signal.SIGINT:
            for each in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        return command()
    except BaseException as error:  # an extension module whose import is interrupted may raise an ImportError
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
    print("Interrupted. Run the same command to resume.", file=sys.stderr)
    return 128 + signal.SIGINT
