# Run `make check` before every push. CI runs the test command of the README (.ci/run).
PYTHON ?= .venv/bin/python
PYTEST = $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE   # containers set it; without bytecode, each of hundreds of processes compiles the package

.PHONY: check test lint gpu

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(dir $(shell command -v $(PYTHON)))lint-imports

# What needs a CUDA device, in about five minutes.
gpu:
	$(PYTHON) -m pytest -m gpu -n 0
	$(PYTHON) -m study.bench norms --device cuda --quick
	$(PYTHON) -m study.bench fuse --device cuda --quick
	$(PYTHON) run_study.py --study depth_vs_batch --scale smoke --set device=cuda --set run.fuse=8 --set tracking.mode=disabled \
		--out runs/gpu
