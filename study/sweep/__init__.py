"""The driver: plan -> what is missing -> submit -> tell; Optuna's storage; the executors."""
