"""Computes interim answers or a new report in a low-priority process beside a running study."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from study.record.layout import StudyFolder
from study.sweep.executors.resources import count_cores

NICENESS = 10  # training has priority, but a task still makes progress
FINISH_POLL_SECONDS = 0.1
RETRY_SECONDS = 60.0  # after a task that did not report its cost


class BackgroundTask:
    """Repeats `answers` or `report` in a low-priority process, with at most `share` of this machine's processor time.

    first: seconds before the first start. result: of the last success. error: why the last run failed, in one line;
    empty after a success.
    """

    def __init__(self, task: str, folder: StudyFolder, *, share: float, first: float) -> None:
        self.command = [sys.executable, "-m", "study.cli.background", task, str(folder.path)]
        self.share = share
        self.due = time.monotonic() + first
        self.process: subprocess.Popen[bytes] | None = None
        self.version: object = None
        self.result: Any = None
        self.error = ""

    def poll(self, version: object) -> bool:
        """Starts the task if it is due and `version` differs from that of the last start; returns whether one ended."""
        ended = self.process is not None and self.process.poll() is not None
        if ended:
            self._collect()
        if self.process is None and version != self.version and time.monotonic() >= self.due:
            self.version = version
            # One thread, as the cores are for the trials.
            environment = {**environment_with_package(), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(  # noqa: S603
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip
        return ended

    def finish(self, version: object) -> None:
        """Waits for the result of `version`, which is computed now if it has not been."""
        while self.process is not None or self.version != version:
            self.due = 0.0
            self.poll(version)
            time.sleep(FINISH_POLL_SECONDS)

    def close(self) -> None:
        """Kills a task that is running."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _collect(self) -> None:
        assert self.process is not None
        output = self.process.communicate()[0]  # far less than a pipe holds
        try:
            report = json.loads(output)
        except ValueError:  # the process was killed, perhaps by the kernel because memory ran out
            report = {"error": f"ended with exit code {self.process.returncode}", "seconds": None}
        self.process = None
        self.error, self.result = report.get("error", ""), report.get("result", self.result)
        cost = report["seconds"]
        self.due = time.monotonic() + (RETRY_SECONDS if cost is None else cost / self.share / count_cores())


def environment_with_package() -> dict[str, str]:
    """Environment in which a new interpreter finds this package, whatever the working directory."""
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}


# ------------------------------------------------------------------------------------- in the task's process


def main(task: str, path: str) -> None:
    """Runs a task and prints `{"result": ...}` or `{"error": ...}`, with the processor `seconds` it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process, which kills this one
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # on Linux: when memory runs out, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        report = {"result": _run_task(task, StudyFolder(Path(path)))}
    except Exception as error:
        report = {"error": (str(error) or type(error).__name__).splitlines()[0]}
    print(json.dumps({**report, "seconds": time.process_time()}))


def _run_task(task: str, folder: StudyFolder) -> Any:
    if task == "answers":
        from study.analysis.report.interim_answers import compute_interim_answers

        return compute_interim_answers(folder)
    from study.analysis.report.report import write_report

    return str(write_report(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
