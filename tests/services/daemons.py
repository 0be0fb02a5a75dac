"""What the scripts beside this one share: ports, programs, waiting. Python's own library only."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from glob import glob

# Debian keeps daemons where a user's PATH may not look.
PLACES = ["/usr/sbin", "/usr/local/sbin", *sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)]


def find(program: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES]))


def missing(programs: tuple[str, ...]) -> str:
    """Those that are not installed, for the reason of a skipped test; empty if all are there."""
    return ", ".join(program for program in programs if find(program) is None)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(true: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Raises `RuntimeError` if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.1)
