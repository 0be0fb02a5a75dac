"""Makes `python -m study` the same program as `run_study.py`, from any folder."""

import sys

from study.cli.main import main

sys.exit(main())
