# `make check` before every push; CI runs the README's test command.
PYTHON ?= .venv/bin/python

.PHONY: check test

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder
