"""Writes how a trial ended: result.json of a finished trial, state.json of one that failed outside its own process."""

from __future__ import annotations

from typing import Any

from study.record.contents import SCHEMA_VERSION
from study.record.io import file_digest, write_json
from study.record.layout import TrialFolder

REPEATED = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "device_batch", "pool", "parameters",
            "norm_layers")  # fmt: skip


def write_result(folder: TrialFolder, description: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Writes result.json, the last file of a record, with the digests of the other files.

    description: the content of trial.yaml; the fields `REPEATED` are copied from it.
    """
    files = (folder.trial, folder.environment, folder.metrics, folder.switch_weights)
    write_json(folder.result, {
        "schema": SCHEMA_VERSION,
        **{key: description[key] for key in REPEATED},
        **outcome,
        "files": {file.name: file_digest(file) for file in files},
    })  # fmt: skip


def record_failure(folder: TrialFolder, reason: str) -> None:
    """Marks a trial as failed from outside its process. The number of its failures stays, so it is tried again."""
    write_json(folder.state, {**folder.read_state(), "state": "failed", "reason": reason})
