"""The program: `run-study`, `python -m study` from any folder, and `python run_study.py` in a checkout."""

import os
import sys

from study.cli.interrupts import exit_on_interrupt


def main() -> int:
    """Runs one command and returns its exit code."""
    exit_on_interrupt()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from study.cli.completion import complete

        complete()
    from study.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
