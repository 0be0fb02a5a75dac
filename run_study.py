"""`python run_study.py --study depth_vs_batch`: plan, train what is missing, report. See `--help`."""

import sys

from study.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
