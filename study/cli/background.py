"""Work beside a running study that must not slow it down: the answers so far, a fresh report.

Each time in a process of its own at low priority, which gives back its memory, and whose cost decides how soon the next
one may start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from study.record.layout import StudyFolder
from study.sweep.executors.resources import count_cores

PATIENCE = 10  # niceness: training goes first, and this still comes to its end
RETRY_SECONDS = 60.0  # after a failure, whose cost is not known


class Background:
    """Does one of `WORK` on a study again and again, with at most `share` of this machine's processor time.

    result: what the last one has found. error: why it has not, in a line; empty where it has.
    """

    def __init__(self, work: str, folder: StudyFolder, *, share: float, first: float) -> None:
        """`first`: seconds before the first time."""
        self.command = [sys.executable, "-m", "study.cli.background", work, str(folder.path)]
        self.share = share
        self.due = time.monotonic() + first
        self.process: subprocess.Popen[bytes] | None = None
        self.output: IO[bytes] | None = None
        self.stamp: object = None
        self.result: Any = None
        self.error = ""

    def poll(self, stamp: object) -> bool:
        """Collects what has ended, starts where it is time and `stamp` has changed; whether there is news."""
        news = self._collect()
        if self.process is None and stamp != self.stamp and time.monotonic() >= self.due:
            self.stamp = stamp
            self._start()
        return news

    def close(self) -> None:
        """Ends what is at work."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  (read when the process has ended)
        # One thread: the cores belong to the trials. The package that runs now, wherever the user is.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _with_package(os.environ)}
        self.process = subprocess.Popen(  # noqa: S603
            self.command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.DEVNULL, env=environment
        )

    def _collect(self) -> bool:
        if self.process is None or self.output is None or self.process.poll() is None:
            return False
        self.output.seek(0)
        try:
            said = json.loads(self.output.read())
        except ValueError:  # killed, for its memory perhaps
            said = {"error": f"ended with exit code {self.process.returncode}", "seconds": None}
        self.output.close()
        self.process = None
        self.error, self.result = said.get("error", ""), said.get("result", self.result)
        cost = said["seconds"]
        self.due = time.monotonic() + (RETRY_SECONDS if cost is None else cost / self.share / count_cores())
        return True


def _with_package(environment: Mapping[str, str]) -> str:
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))


# ------------------------------------------------------------------------------------------- in the process


def _answer(folder: StudyFolder) -> Any:
    from study.analysis.report.interim_answers import compute_interim_answers

    return compute_interim_answers(folder)


def _report(folder: StudyFolder) -> Any:
    from study.analysis.report.report import write_report

    return str(write_report(folder))


WORK: Mapping[str, Callable[[StudyFolder], Any]] = {"answers": _answer, "report": _report}


def main(work: str, path: str) -> None:
    """Does one piece of work and prints `{"result": ...}`, or `{"error": ...}`, with the processor seconds it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who waits for this
    os.nice(PATIENCE)
    with contextlib.suppress(OSError):  # where memory ends, Linux is to end this and no trial
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        said = {"result": WORK[work](StudyFolder(Path(path)))}
    except Exception as error:
        said = {"error": (str(error) or type(error).__name__).splitlines()[0]}
    print(json.dumps({**said, "seconds": time.process_time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
