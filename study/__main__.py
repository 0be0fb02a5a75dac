"""`python -m study` is `run_study.py`, from anywhere."""

import sys

from study.cli import main

sys.exit(main(sys.argv[1:]))
