"""`python -m study` is `run_study.py`, from anywhere."""

import sys

from study.cli.main import main

sys.exit(main(sys.argv[1:]))
