"""A forkserver that still imports survives the signals that a terminal or a cluster sends to every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = """
import multiprocessing, os, sys, time
from multiprocessing import forkserver
from study.config.signals import _BLOCKED, start_forkserver

def print_pid(): print("started", flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slow"])
    start_forkserver()
    for number in _BLOCKED:
        os.kill(forkserver._forkserver._forkserver_pid, number)
    process = context.Process(target=print_pid)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_a_forkserver_survives_signals_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.5)")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
