"""The program: `run-study`, `python -m study` from any folder, and `python run_study.py` in a checkout."""

import sys


def main() -> int:
    """Runs one command and returns its exit code. A Ctrl-C while modules are imported ends it in one line, too."""
    try:
        from study.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("Interrupted. Run the same command to resume.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
