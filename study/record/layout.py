"""Every file of a study, named in one place, and the ways to read and write them safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from study.record.io import file_digest, read_json, write_json

SCHEMA = 1
FINISHED = ("done", "diverged", "pruned")  # a result; `failed` is none
LOCK_SECONDS = 1.0  # for drivers and trials; longer than `status` holds a lock to see whether it is free


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
        """Written by the driver of a search: the trial is to end."""
        return self.path / "prune.json"

    @property
    def log(self) -> Path:
        """What the trial's process printed."""
        return self.path / "output.log"

    @property
    def attempts_log(self) -> Path:
        """A line when an attempt starts training and a line when it ends; one that was killed has no end."""
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

    def lock(self) -> FileLock:
        """Held while the trial trains. The kernel frees it when the process dies, however it dies."""
        return FileLock(self.path / ".lock")

    def is_locked(self) -> bool:
        """Whether a process trains this trial."""
        return _is_locked(self.path / ".lock")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished trial; None where there is none, or where a file it vouches for is not as it was.

        Sizes are compared here, cheap enough for thousands of trials; `damaged_files` compares contents.
        """
        result = _whole_result(self.result)
        if result is None:
            return None
        unchanged = (_size(f"{self.path}/{name}") == facts["bytes"] for name, facts in result["files"].items())
        return result if all(unchanged) else None

    def damaged_files(self) -> list[str]:
        """Files of a result that are not what it vouches for; the result itself if it is unreadable."""
        return self.check()[1]

    def check(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The result as it stands, None where there is none, and the files that `damaged_files` names."""
        if not self.result.exists():
            return None, []
        result = _whole_result(self.result)
        if result is None:
            return None, [self.result.name]
        return result, [name for name, facts in result["files"].items() if file_digest(self.path / name) != facts]

    def attempts(self) -> tuple[int, int]:
        """How often the trial was started, and how often it failed by itself; a kill or a signal is no failure."""
        state = read_json(self.state) or {}
        counts = [state.get(name) for name in ("attempt", "failures")]
        started, failed = (count if isinstance(count, int) else 0 for count in counts)
        return started, failed

    def status(self) -> tuple[str, str]:
        """State and reason: planned, running, stale (its process has left), failed, damaged, or the result's status."""
        result = self.read_result()
        if result is not None:
            return result["status"], result.get("reason") or ""
        state = read_json(self.state) or {}
        if state.get("state") == "failed":
            return "failed", str(state.get("reason", ""))
        if self.is_locked():
            return "running", ""
        if damaged := self.damaged_files():
            return "damaged", ", ".join(damaged)
        if state.get("state") in ("running", "interrupted"):
            return "stale", str(state.get("reason") or f"attempt {state.get('attempt')} was interrupted")
        return ("damaged", self.state.name) if self.state.exists() else ("planned", "")


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
        """Which process drives the study, or was the last to."""
        return self.path / "driver.json"

    @property
    def driver_log(self) -> Path:
        """What a detached driver printed."""
        return self.path / "driver.log"

    @property
    def queue(self) -> Path:
        """Which trials a cluster's jobs have."""
        return self.path / "queue.json"

    @property
    def jobs(self) -> Path:
        """What a cluster's jobs are started from, and what they printed."""
        return self.path / "jobs"

    def lock(self) -> FileLock:
        """One driver a study."""
        return FileLock(self.path / ".lock")

    def is_locked(self) -> bool:
        """Whether a driver runs this study."""
        return _is_locked(self.path / ".lock")

    def trial(self, trial_id: str, replicate: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id / f"r{replicate}")

    @property
    def wandb(self) -> Path:
        """Links to the W&B runs of all trials and of the summary: one folder to browse and to sync."""
        return self.path / "wandb"

    @property
    def dashboard(self) -> Path:
        """Where the study's pages on W&B are, and of which answers the summary run is."""
        return self.path / "dashboard.json"

    def link_wandb_runs(self) -> None:
        """Brings the links up to date; a resumed trial has a new run in place of its old one."""
        self.wandb.mkdir(exist_ok=True)
        for link in self.wandb.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()
        for run in chain(self.path.glob("trials/*/r*/wandb/*run-*"), self.report.glob("wandb/*run-*")):
            link = self.wandb / run.name
            if not run.is_symlink() and not link.is_symlink():
                link.symlink_to(os.path.relpath(run, self.wandb), target_is_directory=True)

    def unsynced_runs(self) -> int:
        """How many linked runs are offline and not on W&B; `wandb sync` marks those that it has taken there."""
        return sum(not any(run.glob("*.wandb.synced")) for run in self.wandb.glob("offline-run-*"))

    def trials(self) -> Iterator[TrialFolder]:
        """Every trial that has left anything, planned or not."""
        for path in sorted(self.path.glob("trials/*/r*")):
            if path.is_dir() and path.name[1:].isdecimal():
                yield TrialFolder(path)


def _is_locked(path: Path) -> bool:
    if not path.exists():  # acquiring would make the file, and the folder of a planned trial
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # a record read where nothing can be written: nobody trains there
        return False


def _whole_result(path: Path) -> dict[str, Any] | None:
    """A result of this schema with all that readers rely on, or None."""
    result = read_json(path) or {}
    files = result.get("files")
    whole = (
        result.get("schema") == SCHEMA
        and result.get("status") in FINISHED
        and isinstance(result.get("metrics"), dict)
        and isinstance(files, dict)
        and all(isinstance(facts, dict) and "bytes" in facts for facts in files.values())
    )
    return result if whole else None


def _size(path: str) -> int | None:
    """Bytes of a file; None where there is none. One call and no `Path`: `status` asks for every file of a study."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def write_result(folder: TrialFolder, description: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes the last file of a record: it repeats some of trial.yaml, and vouches for the other files."""
    repeated = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "device_batch", "pool", "parameters",
                "norm_layers")  # fmt: skip
    files = (folder.trial, folder.environment, folder.metrics, folder.switch_weights)
    write_json(folder.result, {
        "schema": SCHEMA,
        **{key: description[key] for key in repeated},
        **facts,
        "files": {file.name: file_digest(file) for file in files},
    })  # fmt: skip


def record_failure(record: TrialFolder, reason: str) -> None:
    """Says of a trial why it has no result, where its own process has not: held against nobody, and tried again."""
    write_json(record.state, {**(read_json(record.state) or {}), "state": "failed", "reason": reason})
