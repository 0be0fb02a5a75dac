"""Ctrl-C, SIGTERM and SIGHUP end the program in one line, from its first import on. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

EXIT_CODE = 128 + signal.SIGINT
MESSAGE = "Interrupted. Run the same command again to continue."
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_on_interrupt() -> None:
    """Until `run_interruptible`: a signal ends the process at once.

    For the imports, in which an exception may become another one, or may be printed by a compiled module.
    """

    def end(*_: object) -> None:
        os.write(sys.stderr.fileno(), f"{MESSAGE}\n".encode())
        os._exit(EXIT_CODE)

    _set_handler(end)


def run_interruptible(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code: 130 after Ctrl-C, SIGTERM or SIGHUP."""
    received: list[int] = []

    def interrupt(number: int, _: object) -> None:
        """Raises KeyboardInterrupt. SIGTERM and SIGHUP do so once: a second one must not end the last checkpoints."""
        received.append(number)
        if number != signal.SIGINT:
            for each in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    _set_handler(interrupt)
    try:
        return command()
    except BaseException as error:  # an import that is interrupted may raise any error
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
    print(MESSAGE, file=sys.stderr)
    return EXIT_CODE


def _set_handler(handler: Callable[[int, object], None]) -> None:
    """Sets the handler of all signals but those that are ignored, as SIGHUP is under nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
