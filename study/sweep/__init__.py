"""Runs a study: the driver, the queue of trials, retries, the executors, and the study's Optuna storage."""
