"""The program: `run-study`, `python -m study` from any folder, and `python run_study.py` in a checkout."""

import atexit
import os
import signal
import sys
from typing import NoReturn

from study.cli.interrupts import exit_on_interrupt


def start() -> NoReturn:
    """Runs one command and ends the process with its exit code.

    Once all that is registered with `atexit` has run, the process ends at once. Python's own end takes a second where
    torch was imported, and a SIGTERM within it would change the exit code of a command that is done.
    """
    codes: list[int] = []
    atexit.register(lambda: _end(codes[0]) if codes else None)  # registered first, it runs last
    codes.append(main())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(codes[0])


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def main() -> int:
    """Runs one command and returns its exit code; 2 with one line if this Python lacks a package that it needs."""
    exit_on_interrupt()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the end of the program
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from study.cli.completion import complete

        complete()
    try:
        from study.cli.main import main

        return main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "study":  # a bug
            raise
        print(
            f"error: {sys.executable} has no module {error.name}. Activate the environment of the installation "
            f"(source .venv/bin/activate), or install into this one: {sys.executable} -m pip install -e .",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    start()
