"""Benchmarks that a user runs on their own machine: `python -m study.bench NAME`. Nothing else imports them."""
