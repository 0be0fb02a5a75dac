"""`python -m study`: the same program as `run_study.py` and `run-study`."""

import sys

from study.cli.main import main

sys.exit(main())
