"""Runs one study that faults disturb: starts its driver, sees which of its trials train, and waits for its end."""

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
# Four trials of a few seconds and 250 steps each, with all the state that a resumed trial must restore: dropout,
# running statistics, momentum. Trials may be killed often here, so they get many attempts.
OVERRIDES = (
    "norm=[sn, bn]", "depth=[8]", "batch_size=[2]", "initialization=[he_normal]", "replicates=2", "chunks=2",
    "epochs=5", "dropout=0.2", "checkpoint_seconds=0", "max_attempts=20", "tracking.mode=disabled",
)  # fmt: skip
WORKERS = 2
MAX_DELAY = 1.5  # seconds from the moment when a trial is seen to train to the fault; a trial takes a few
TIMEOUTS = {"local": 300.0, "slurm": 7200.0, "ray": 7200.0}  # seconds; clusters have queues
POLL_SECONDS = 0.05
SMALL_DISK = "20m"
MAX_PROBLEMS = 5  # the benchmark stops after more


class StudyFinishedError(Exception):
    """The study has ended, so nothing is left to disturb."""


class StuckError(Exception):
    """The study makes no progress."""


class NotPossibleError(Exception):
    """The fault cannot be injected on this machine; the message says why."""


class RunningTrial(NamedTuple):
    """A trial that trains now: its record, process, machine and, on a cluster, job."""

    record: TrialFolder
    pid: int
    host: str
    job: str


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """What all studies of a campaign share.

    overrides: for `--set`. stop_seconds: how long a process is stopped. cluster: the campaign's own Ray cluster.
    """

    launcher: str
    overrides: tuple[str, ...]
    stop_seconds: float
    rng: random.Random
    storage: str | None = None
    restart_storage: str | None = None
    cluster: Any = None

    @property
    def timeout(self) -> float:
        """Seconds that the study is given for any single step."""
        return TIMEOUTS[self.launcher]

    def command(self, out: Path) -> list[str]:
        """The command that a user would type."""
        flags = [flag for value in self.overrides for flag in ("--set", value)]
        flags += ["--workers", str(WORKERS)] if self.launcher == "local" else []
        flags += ["--storage", self.storage] if self.storage else []
        return [sys.executable, "-m", "study", "--study", STUDY, "--scale", SCALE, "--launcher", self.launcher, *flags,
                "--out", str(out)]  # fmt: skip


class StudyHarness:
    """One study in its own folder, run by the command that a user would type, as often as needed."""

    def __init__(self, path: Path, settings: CampaignSettings, *, small_disk: bool = False) -> None:
        self.path, self.settings, self.small_disk = path, settings, small_disk
        self.name = load_study(STUDY, SCALE, settings.overrides).name
        self.folder = StudyFolder(path / self.name)
        self.driver: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []  # all drivers so far
        self.problems: list[str] = []
        self.finished = False  # since the last start

    # ------------------------------------------------------------------------------------------ the driver

    def start(self, *flags: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a driver in a session of its own. Its output goes to a file of its own."""
        if not self.path.exists():
            self.path.mkdir(parents=True)
            if self.small_disk:
                _mount_small_disk(self.path)
        with open(self.log(len(self.started)), "wb") as log:
            driver = subprocess.Popen(  # noqa: S603
                [*self.settings.command(self.path), *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=Path(study.__file__).parents[1], env={**os.environ, **(environment or {})},
                # Shells ignore SIGINT in background processes, and child processes inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        self.started.append(driver)
        self.finished = False
        return driver

    def log(self, start: int) -> Path:
        """The output of the driver that was started as number `start`, counted from 0."""
        return self.path.parent / f"{self.path.name}-driver-{start}.log"

    def last_line(self) -> str:
        """The last line of output of the last driver."""
        lines = self.log(len(self.started) - 1).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing printed"

    def ensure_driver(self) -> subprocess.Popen[bytes]:
        """The running driver; starts one if none runs. Raises `StudyFinishedError` if the last one ended with 0."""
        if self.driver is not None and self.driver.poll() is not None:
            code, self.driver = self.driver.returncode, None
            if code == 0:
                self.finished = True
                raise StudyFinishedError
            self.problems.append(f"a driver ended with exit code {code}: {self.last_line()}")
        if len(self.problems) > MAX_PROBLEMS:
            raise StuckError(f"more than {MAX_PROBLEMS} problems; see {self.path}")
        if self.driver is None:
            self.driver = self.start()
        return self.driver

    def signal_driver(self, number: int) -> int:
        """Sends a signal to the driver alone, which ends it; returns its exit code."""
        driver = self.ensure_driver()
        driver.send_signal(number)
        self.driver = None
        return driver.wait(self.settings.timeout)

    def kill_all(self) -> None:
        """Kills the driver and all processes that it has started on this machine, as a power cut would."""
        if self.driver is not None:
            _kill_session(self.driver)
            self.driver = None
        if self.settings.launcher == "local":
            self.wait_for(lambda: not self.find_running_trials(), "trials still run after their session was killed")

    def run_to_end(self) -> None:
        """Runs the command until it ends with exit code 0. Raises `StuckError` if it does not."""
        with suppress(StudyFinishedError):
            while True:
                try:
                    self.ensure_driver().wait(self.settings.timeout)
                except subprocess.TimeoutExpired:
                    raise StuckError(
                        f"a driver has not ended in {self.settings.timeout:g} s: {self.last_line()}"
                    ) from None
        self.driver = None

    @property
    def storage(self) -> str:
        """The URL of Optuna's storage."""
        return self.settings.storage or f"sqlite:///{self.folder.storage}"

    def close(self) -> None:
        """Ends all processes and Slurm jobs, unmounts the small disk, and deletes the study from a shared storage."""
        for driver in self.started:
            _kill_session(driver)
        jobs = list((read_json(self.folder.queue) or {}).get("slurm", {}))
        if self.settings.launcher == "slurm" and jobs:
            subprocess.run(["scancel", "--quiet", *jobs], capture_output=True)  # noqa: S603, S607
        if self.small_disk and os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True)  # noqa: S603, S607
        if self.settings.storage is not None and self.started:
            _delete_from_storage(self.name, self.settings.storage)

    def remove(self) -> None:
        """Deletes the study and the output of its drivers from the disk."""
        shutil.rmtree(self.path)
        for start in range(len(self.started)):
            self.log(start).unlink()

    # ------------------------------------------------------------------------------------------ its trials

    def wait_for_moment(self, is_ready: Callable[[TrialFolder], bool] = lambda record: True) -> list[RunningTrial]:
        """Waits for a random moment at which trials train and are ready; returns these trials. Keeps a driver running.

        Raises `StudyFinishedError` if no trial is left to train.
        """
        while True:
            self.wait_until_training(is_ready)
            time.sleep(self.settings.rng.uniform(0, MAX_DELAY))
            if trials := [trial for trial in self.find_running_trials() if is_ready(trial.record)]:
                return trials

    def wait_until_training(self, is_ready: Callable[[TrialFolder], bool] = lambda record: True) -> None:
        """Waits until a trial trains and is ready. Raises `StudyFinishedError` if no trial is left to train."""

        def trains() -> bool:
            self.ensure_driver()
            return any(is_ready(trial.record) for trial in self.find_running_trials())

        self.wait_for(trains, "no trial trains")

    def find_running_trials(self) -> list[RunningTrial]:
        """The trials that have begun to train and not ended, and whose file lock is held."""
        return [trial for record in self.folder.trials() if (trial := _read_running_trial(record)) is not None]

    def wait_for(self, condition: Callable[[], bool], problem: str) -> None:
        """Polls until the condition holds. Raises `StuckError` with the problem if it does not in time."""
        deadline = time.monotonic() + self.settings.timeout
        while not condition():
            if time.monotonic() > deadline:
                raise StuckError(f"{problem} for {self.settings.timeout:g} s: {self.last_line()}")
            time.sleep(POLL_SECONDS)


def _read_running_trial(record: TrialFolder) -> RunningTrial | None:
    state, attempts = record.read_state(), read_attempts(record.attempts_log)
    if state.get("state") != "running" or not attempts or "pid" not in attempts[-1] or not record.is_locked():
        return None
    if attempts[-1].get("attempt") != state.get("attempt"):  # a new attempt is still being set up
        return None
    return RunningTrial(record, state["pid"], state["host"], state.get("job", ""))


def _mount_small_disk(path: Path) -> None:
    """Mounts a small file system in memory. Raises `NotPossibleError`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "study-faults", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        raise NotPossibleError(f"a small disk is needed: mount: {error.strerror}") from None
    if done.returncode:
        raise NotPossibleError(f"a small disk is needed, and only root may mount one: {done.stderr.strip()}")


def _delete_from_storage(name: str, storage: str) -> None:
    """Deletes the study, because the next one has the same name."""
    import optuna

    with suppress(Exception):
        optuna.delete_study(study_name=name, storage=storage)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all processes of its session, stopped ones included."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
