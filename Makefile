# Run `make check` before every push. CI runs the test command of the README (.ci/run).
PYTHON ?= .venv/bin/python
PYTEST = $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE   # containers set it; without bytecode, each of hundreds of processes compiles the package

.PHONY: check test lint

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(dir $(shell command -v $(PYTHON)))lint-imports
