"""Writes what a trial's process leaves when it ends, and returns how it ended, as an executor does."""

from __future__ import annotations

from study.record.contents import SCHEMA_VERSION
from study.record.io import file_digest, write_json
from study.record.layout import TrialFolder


def finish(record: TrialFolder, status: str = "done") -> str:
    record.metrics.parent.mkdir(parents=True, exist_ok=True)
    record.metrics.write_text("")
    files = {"metrics.jsonl": file_digest(record.metrics)}
    metrics = {"val_accuracy": 0.9}
    write_json(
        record.result, {"schema": SCHEMA_VERSION, "status": status, "seconds": 1.0, "metrics": metrics, "files": files}
    )
    return "ended with exit code 0"


def interrupt(record: TrialFolder) -> str:
    write_json(record.state, {"state": "interrupted", "attempt": 1, "failures": 0, "reason": "SIGTERM after step 7"})
    return "ended with exit code 0"


def fail(record: TrialFolder, reason: str = "OSError: no") -> str:
    attempt, failures = record.attempts()
    state = {"state": "failed", "attempt": attempt + 1, "failures": failures + 1}
    write_json(record.state, {**state, "reason": reason, "traceback": reason})
    return "ended with exit code 0"


def kill(record: TrialFolder) -> str:
    attempt, failures = record.attempts()
    write_json(record.state, {"state": "running", "attempt": attempt + 1, "failures": failures})
    return "killed by SIGKILL"
