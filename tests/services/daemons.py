"""Ports, programs and waiting, for the scripts in this folder. Standard library only."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from glob import glob

# Debian installs daemons in folders that a user's PATH may lack.
DAEMON_FOLDERS = ["/usr/sbin", "/usr/local/sbin", *sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)]


def find(program: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *DAEMON_FOLDERS]))


def missing(programs: tuple[str, ...]) -> str:
    """The names of those that are not installed, as the reason of a skipped test; empty if all are."""
    return ", ".join(program for program in programs if find(program) is None)


def free_ports(count: int) -> list[int]:
    """Different ports on loopback on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Waits until a condition holds. Raises `RuntimeError` if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.1)
