"""The folders of a study and of its trials: the name of every file, the locks, and what state a trial is in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config.errors import describe_kind
from study.record.contents import (
    MAX_SHOWN,
    DamagedFileError,
    Environment,
    Result,
    State,
    read_description,
    read_document,
)
from study.record.io import file_digest, read_json
from study.record.lock import SILENT_SECONDS, OwnedLock

LOCK_SECONDS = 1.0  # timeout of a driver and of a trial; longer than `status` holds a lock to see whether it is free


@dataclass(frozen=True)
class TrialFolder:
    """`trials/<trial id>/r<replicate>/`, the record of one trial."""

    path: Path

    @property
    def trial(self) -> Path:
        return self.path / "trial.yaml"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def switch_weights(self) -> Path:
        return self.path / "switch_weights.parquet"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        return self.path / "previous.ckpt"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def prune(self) -> Path:
        """Written by the driver of a search to end the trial after its current epoch."""
        return self.path / "prune.json"

    @property
    def log(self) -> Path:
        """What the trial's process printed."""
        return self.path / "output.log"

    @property
    def attempts_log(self) -> Path:
        """A line when an attempt starts training and a line when it ends; a killed attempt has no second line."""
        return self.path / "attempts.jsonl"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def replicate(self) -> int:
        return int(self.path.name.removeprefix("r"))

    @property
    def trial_id(self) -> str:
        return self.path.parent.name

    @property
    def key(self) -> str:
        return f"{self.trial_id}-r{self.replicate}"

    def lock(self) -> OwnedLock:
        """The lock of a trial while it trains."""
        return OwnedLock(self.path / ".lock")

    def is_locked(self) -> bool:
        """Whether a process is training this trial, or has died on a machine that has not released its lock yet."""
        return self.lock().is_held()

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished trial; None where there is none, or where a file of the record has another size.

        Comparing sizes is cheap enough for thousands of trials; `damaged_files` compares contents.
        """
        result = _read_intact(self.result, Result)
        if result is None:
            return None
        unchanged = (_file_size(f"{self.path}/{name}") == digest["bytes"] for name, digest in result["files"].items())
        return result if all(unchanged) else None

    def read_state(self) -> dict[str, Any]:
        """The content of state.json; empty where it is missing or damaged."""
        return _read_intact(self.state, State) or {}

    def read_environment(self) -> dict[str, Any]:
        """The content of environment.json; empty where it is missing. Raises `DamagedFileError`."""
        return read_document(self.environment, Environment) or {}

    def read_data(self) -> dict[str, str]:
        """The data set and its fingerprint in environment.json; empty where it has none, or cannot be read."""
        environment = _read_intact(self.environment, Environment) or {}
        return dict(environment.get("data", {}))

    def read_description(self) -> dict[str, Any]:
        """The content of trial.yaml. Raises `DamagedFileError`, also where it is missing."""
        return read_description(self.trial)

    def damaged_files(self) -> list[str]:
        """Files whose digest differs from the one in the result; the result itself where it cannot be read."""
        return self.check()[1]

    def check(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The result, even if other files are damaged, or None; and the names of the damaged files."""
        try:
            result = read_document(self.result, Result)
        except DamagedFileError:
            return None, [self.result.name]
        if result is None:
            return None, []
        if self._find_stranger(result):
            return None, [self.result.name]
        return result, [name for name, digest in result["files"].items() if file_digest(self.path / name) != digest]

    def describe_damage(self, name: str) -> str:
        """What is wrong with one of the `damaged_files`."""
        if name == self.result.name:
            try:
                stranger = self._find_stranger(read_document(self.result, Result) or {})
            except DamagedFileError as error:
                return str(error)
            if stranger:
                return f"{name}: is that of {stranger}"
        path = self.path / name
        return f"{name}: {describe_kind(path) or ('changed since the trial ended' if path.exists() else 'missing')}"

    def _find_stranger(self, result: dict[str, Any]) -> str:
        """The trial whose result was copied here; empty if it is this one's, or if the folder is not a study's."""
        if self.path.parent.parent.name != "trials":
            return ""
        trial_id, replicate = result.get("trial_id") or self.trial_id, result.get("replicate")
        replicate = self.replicate if replicate is None else replicate
        return "" if (trial_id, replicate) == (self.trial_id, self.replicate) else f"{trial_id}-r{replicate}"

    def attempts(self) -> tuple[int, int]:
        """How often the trial was started, and how often it failed with an error (not by a kill or a signal)."""
        state = self.read_state()
        return state.get("attempt", 0), state.get("failures", 0)

    def status(self) -> tuple[str, str]:
        """State and reason: planned, running, stale (its process ended), failed, damaged, or the result's status."""
        result, damaged = self.check()
        if result is not None and not damaged:
            return result["status"], read_reason(result)
        state = self.read_state()
        if state.get("state") == "failed":
            return "failed", read_reason(state)
        if self.is_locked():
            silent = self.lock().seconds_silent() or 0
            job = f" ({state['job']})" if state.get("job") else ""
            where = f"process {state.get('pid')} on {state.get('host')}{job}"
            why = f"locked, without a sign of life from {where} for {silent / 60:.0f} min"
            return ("stale", why) if silent > SILENT_SECONDS else ("running", "")
        if damaged:
            return "damaged", "; ".join(map(self.describe_damage, damaged))
        if state.get("state") in ("running", "interrupted"):
            return "stale", read_reason(state) or f"attempt {state.get('attempt')} was interrupted"
        try:
            read_document(self.state, State)
        except DamagedFileError as error:
            return "damaged", str(error)
        return "planned", ""


@dataclass(frozen=True)
class StudyFolder:
    """`runs/<study>/`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "study.yaml"

    @property
    def storage(self) -> Path:
        return self.path / "study.db"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def driver(self) -> Path:
        """The file that describes the process that drives the study, or the last one that did."""
        return self.path / "driver.json"

    @property
    def driver_log(self) -> Path:
        """What a detached driver printed."""
        return self.path / "driver.log"

    @property
    def queue(self) -> Path:
        """Which trials have been submitted in which cluster jobs."""
        return self.path / "queue.json"

    @property
    def suggestions(self) -> Path:
        """How many cells a search has suggested, and how many of these repeat an earlier one."""
        return self.path / "suggestions.json"

    def read_suggestions(self) -> tuple[int, int]:
        """The numbers in `suggestions`; zeros where it is missing or damaged."""
        content = read_json(self.suggestions) or {}
        count, repeated = content.get("suggested"), content.get("repeated")
        if isinstance(count, int) and isinstance(repeated, int) and 0 <= repeated < count:
            return count, repeated
        return 0, 0

    @property
    def jobs(self) -> Path:
        """Scripts and output of the cluster jobs."""
        return self.path / "jobs"

    @property
    def env_key(self) -> Path:
        """What the driver of the launcher env signs its messages with; only the folder's owner can read it."""
        return self.jobs / "env.key"

    def lock(self) -> OwnedLock:
        """The lock that the study's only driver holds."""
        return OwnedLock(self.path / ".lock")

    def is_locked(self) -> bool:
        """Whether a driver is running this study."""
        return self.lock().is_held()

    def sync_lock(self) -> OwnedLock:
        """The lock of the process that uploads the study to W&B."""
        return OwnedLock(self.path / ".sync.lock")

    def trial(self, trial_id: str, replicate: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id / f"r{replicate}")

    @property
    def wandb(self) -> Path:
        """Links to the W&B runs of all trials and of the summary: one folder to browse and to sync."""
        return self.path / "wandb"

    @property
    def dashboard(self) -> Path:
        """The addresses of the study's pages on W&B, and the digest of the answers in the summary run."""
        return self.path / "dashboard.json"

    def trials(self) -> Iterator[TrialFolder]:
        """The folders of all trials that have been started, planned or not."""
        for path in sorted(self.path.glob("trials/*/r*")):
            is_replicate = path.name[1:].isascii() and path.name[1:].isdecimal()
            if is_replicate and path.parent.name.isprintable() and path.is_dir():  # others cannot be shown, or encoded
                yield TrialFolder(path)


def read_reason(values: dict[str, Any]) -> str:
    """The reason in a result or a state, cut to a length that can be shown."""
    return (values.get("reason") or "")[:MAX_SHOWN]


def _read_intact(path: Path, contents: type[Result | State | Environment]) -> dict[str, Any] | None:
    """The values of a file; None where it is missing or damaged."""
    try:
        return read_document(path, contents)
    except DamagedFileError:
        return None


def _file_size(path: str) -> int | None:
    """Bytes of a file; None where there is none. A plain call without `Path`, because `status` stats every file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
