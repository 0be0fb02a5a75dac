"""Trains a study and writes its report: `python run_study.py --study depth_vs_batch`. See `--help`."""

import sys

from study.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
