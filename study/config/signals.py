"""Signals that ask a process to stop. They are blocked while a process starts, and unblocked once it handles them."""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_BLOCKED = (signal.SIGINT, signal.SIGHUP, *STOP_SIGNALS)


def start_forkserver() -> None:
    """Starts the forkserver of `multiprocessing` unless it runs. These signals stay blocked in it, and in its children.

    A terminal's Ctrl-C and a cluster's warning reach every process. They would kill a forkserver that imports torch.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        resource_tracker.ensure_running()  # before Python 3.13, its start unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
