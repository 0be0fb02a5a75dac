"""The program: `run-study`, `python -m study` from any folder, and `python run_study.py` in a checkout."""

import sys

from study.cli.interrupts import exit_on_interrupt


def main() -> int:
    """Runs one command and returns its exit code."""
    exit_on_interrupt()
    from study.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
