"""Benchmarks that users run on their own machine: `python -m study.bench NAME`."""
