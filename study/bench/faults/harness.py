"""A study that is disturbed while it runs: its driver, which of its trials train, and how it ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import study
from study.plan.loading import load_study
from study.record.io import read_attempts, read_json
from study.record.layout import StudyFolder, TrialFolder

STUDY, SCALE = "depth_vs_batch", "smoke"
# Four trials of some seconds and 250 steps each, with all that a resume must bring back: dropout, running statistics,
# momentum. A trial may be killed often here: that is not its fault.
SETTINGS = (
    "norm=[sn, bn]", "depth=[8]", "batch_size=[2]", "initialization=[he_normal]", "replicates=2", "chunks=2",
    "epochs=5", "dropout=0.2", "checkpoint_seconds=0", "max_attempts=20", "tracking.mode=disabled",
)  # fmt: skip
WORKERS = 2
LONGEST_WAIT = 1.5  # seconds from seeing a trial train to the fault, at most; a trial takes a few
PATIENCE = {"local": 300.0, "slurm": 7200.0, "ray": 7200.0}  # seconds for anything to happen; clusters have queues
SMALL_DISK = "20m"
RUNS = 5  # of the same command, until it ends well


class StudyOverError(Exception):
    """The study has ended: nothing is left to disturb."""


class StuckError(Exception):
    """What must happen has not happened."""


class SmallDiskError(Exception):
    """A small disk cannot be had here, and why."""


class Training(NamedTuple):
    """A trial that trains now: a process, its machine and, on a cluster, its job."""

    record: TrialFolder
    pid: int
    host: str
    job: str


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """What all studies of a bench share.

    settings: for `--set`. stop_seconds: how long a process is stopped. cluster: of Ray, started by the bench.
    """

    launcher: str
    settings: tuple[str, ...]
    stop_seconds: float
    rng: random.Random
    storage: str | None = None
    restart_storage: str | None = None
    cluster: Any = None

    @property
    def patience(self) -> float:
        """Seconds for anything to happen."""
        return PATIENCE[self.launcher]

    def command(self, out: Path) -> list[str]:
        """The command that a user types."""
        flags = [flag for value in self.settings for flag in ("--set", value)]
        flags += ["--workers", str(WORKERS)] if self.launcher == "local" else []
        flags += ["--storage", self.storage] if self.storage else []
        return [sys.executable, "-m", "study", "--study", STUDY, "--scale", SCALE, "--launcher", self.launcher, *flags,
                "--out", str(out)]  # fmt: skip


class StudyHarness:
    """One study in a folder of its own, run by the command that a user types, again and again."""

    def __init__(self, path: Path, setting: CampaignSettings, *, small_disk: bool = False) -> None:
        self.path, self.setting, self.small_disk = path, setting, small_disk
        self.name = load_study(STUDY, SCALE, setting.settings).name
        self.folder = StudyFolder(path / self.name)
        self.driver: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []
        self.problems: list[str] = []
        self.over = False  # since the last start

    # ------------------------------------------------------------------------------------------ the driver

    def start(self, *flags: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the command, in a session of its own. What it prints is kept in a file, one a start."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            if self.small_disk:
                _mount(self.path)
        with open(self.log(len(self.started)), "wb") as log:
            driver = subprocess.Popen(  # noqa: S603
                [*self.setting.command(self.path), *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=Path(study.__file__).parents[1], env={**os.environ, **(environment or {})},
                # A shell starts what it runs in the background with SIGINT ignored, and this is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        self.started.append(driver)
        self.over = False
        return driver

    def log(self, start: int) -> Path:
        """What the driver printed after a start, counted from 0."""
        return self.path.parent / f"{self.path.name}-driver-{start}.log"

    def running(self) -> subprocess.Popen[bytes]:
        """The driver, started if none runs. Raises `StudyOverError` where it has ended well."""
        if self.driver is not None and self.driver.poll() is not None:
            code, self.driver = self.driver.returncode, None
            if code == 0:
                self.over = True
                raise StudyOverError
            self.problems.append(f"a driver ended with exit code {code}: {self.last_line()}")
        if len(self.problems) > RUNS:
            raise StuckError(f"the command ended badly {RUNS} times; see {self.path}")
        if self.driver is None:
            self.driver = self.start()
        return self.driver

    def signal_driver(self, number: int) -> int:
        """Sends a signal that ends the driver, and only the driver; its exit code."""
        driver = self.running()
        driver.send_signal(number)
        self.driver = None
        return driver.wait(self.setting.patience)

    def halt(self) -> None:
        """Kills the driver and all that it has started on this machine, as a power cut would."""
        if self.driver is not None:
            kill_session(self.driver)
            self.driver = None
        if self.setting.launcher == "local":
            self.wait_for(lambda: not self.training(), "the trials of a killed session go on")

    @property
    def storage(self) -> str:
        """The URL of Optuna's storage."""
        return self.setting.storage or f"sqlite:///{self.folder.storage}"

    def last_line(self) -> str:
        """The last that the last driver printed."""
        lines = self.log(len(self.started) - 1).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing printed"

    def finish(self) -> None:
        """The same command until it ends well. Raises `StuckError` if it does not."""
        with suppress(StudyOverError):
            while True:
                try:
                    self.running().wait(self.setting.patience)
                except subprocess.TimeoutExpired:
                    raise StuckError(
                        f"a driver has not ended in {self.setting.patience:g} s: {self.last_line()}"
                    ) from None
        self.driver = None

    def close(self) -> None:
        """Leaves no process and, on Slurm, no job."""
        for driver in self.started:
            kill_session(driver)
        jobs = list((read_json(self.folder.queue) or {}).get("slurm", {}))
        if self.setting.launcher == "slurm" and jobs:
            subprocess.run(["scancel", "--quiet", *jobs], capture_output=True)  # noqa: S603, S607
        if self.small_disk and os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True)  # noqa: S603, S607
        if self.setting.storage is not None and self.started:
            _forget(self.name, self.setting.storage)

    def remove(self) -> None:
        """Clears away what is on the disk."""
        shutil.rmtree(self.path)
        for start in range(len(self.started)):
            self.log(start).unlink()

    # ------------------------------------------------------------------------------------------ its trials

    def moment(self, ready: Callable[[TrialFolder], bool] = lambda record: True) -> list[Training]:
        """Trials that train, and are `ready`, at a random moment; at least one. Keeps a driver running.

        Raises `StudyOverError` where none is left to train.
        """
        while True:
            if self.wait_training(ready):
                time.sleep(self.setting.rng.uniform(0, LONGEST_WAIT))
            if found := [trial for trial in self.training() if ready(trial.record)]:
                return found

    def wait_training(self, ready: Callable[[TrialFolder], bool] = lambda record: True) -> bool:
        """Waits until a trial trains. Raises as `moment`."""

        def look() -> bool:
            self.running()
            return any(ready(trial.record) for trial in self.training())

        self.wait_for(look, "no trial trains")
        return True

    def training(self) -> list[Training]:
        """Trials that have begun to train and not ended, and whose lock is held."""
        return [found for record in self.folder.trials() if (found := _training(record)) is not None]

    def wait_for(self, true: Callable[[], bool], complaint: str) -> None:
        """Raises `StuckError` where it does not come true."""
        deadline = time.monotonic() + self.setting.patience
        while not true():
            if time.monotonic() > deadline:
                raise StuckError(f"{complaint} for {self.setting.patience:g} s: {self.last_line()}")
            time.sleep(0.05)


def _training(record: TrialFolder) -> Training | None:
    state, lines = read_json(record.state) or {}, read_attempts(record.attempts_log)
    if state.get("state") != "running" or not lines or "pid" not in lines[-1] or not record.is_locked():
        return None
    if lines[-1].get("attempt") != state.get("attempt"):  # it has only begun to set up
        return None
    return Training(record, state["pid"], state["host"], state.get("job", ""))


def _mount(path: Path) -> None:
    """A file system in memory that is soon full. Raises `SmallDiskError`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "study-faults", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        raise SmallDiskError(f"a small disk is needed: mount: {error.strerror}") from None
    if done.returncode:
        raise SmallDiskError(f"a small disk is needed, and only root may mount one: {done.stderr.strip()}")


def _forget(name: str, storage: str) -> None:
    """The next study has the same name."""
    import optuna

    with suppress(Exception):
        optuna.delete_study(study_name=name, storage=storage)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and those of its session; a stopped one, too."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
