"""Trains a study and writes its report: `python run_study.py --study depth_vs_batch`. See `--help`."""

import sys

from study.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
