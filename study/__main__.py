"""The program: `run-study`, `python -m study` from any folder, and `python run_study.py` in a checkout."""

import sys

from study.cli.interrupts import run_interruptible


def main() -> int:
    """Runs one command and returns its exit code. What takes time to import is imported where Ctrl-C is handled."""
    return run_interruptible(_import_and_run)


def _import_and_run() -> int:
    from study.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
