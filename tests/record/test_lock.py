"""The lock of a trial, on machines that do not see each other's file locks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import Timeout

from study.record import lock as lock_module
from study.record.lock import OwnedLock
from study.training.preemption import handle_signals
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock_module, "LEASE_SECONDS", 0.6)  # with a heartbeat every 0.2 s
    monkeypatch.setattr(lock_module, "LEASE_POLL_SECONDS", 0.05)
    return tmp_path / ".lock"


@pytest.fixture
def elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnedLock:
    """Held by another machine, whose file lock this one does not see."""
    with monkeypatch.context() as context:
        context.setattr(socket, "gethostname", lambda: "node7")
        lock = OwnedLock(path)
        lock.acquire()
    lock._lock.release()
    return lock


def test_a_machine_that_does_not_see_the_file_lock_sees_the_lease(path: Path, elsewhere: OwnedLock) -> None:
    assert OwnedLock(path).is_held()
    for patience in ({"timeout": 0.01}, {"blocking": False}):
        with pytest.raises(Timeout):
            OwnedLock(path).acquire(**patience)  # type: ignore[arg-type]
    assert OwnedLock(path).is_held()
    elsewhere._lease.release()
    assert not OwnedLock(path).is_held()


@pytest.mark.parametrize(("silent", "wait"), [(0.0, 0.6), (3600.0, 0.0)])
def test_the_lease_of_a_dead_machine_is_taken_over(
    path: Path, elsewhere: OwnedLock, silent: float, wait: float
) -> None:
    content = elsewhere.owner.read_bytes()
    elsewhere._lease.release()
    elsewhere.owner.write_bytes(content)
    os.utime(elsewhere.owner, (time.time() - silent,) * 2)
    started = time.monotonic()
    with OwnedLock(path).acquire(0.01):
        assert wait <= time.monotonic() - started < wait + 0.5
        assert elsewhere.owner.read_bytes() != content
    assert not elsewhere.owner.exists()


def test_the_lease_of_a_process_that_died_on_this_machine_is_taken_over_at_once(path: Path) -> None:
    code = (
        "import os, pathlib, sys; from study.record.lock import OwnedLock\n"
        "lock = OwnedLock(pathlib.Path(sys.argv[1])); lock.acquire(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    lock = OwnedLock(path)
    assert lock.owner.exists()
    assert not lock.is_held()
    with lock.acquire(0.01):
        assert OwnedLock(path).is_held()


def test_a_process_whose_lease_was_taken_is_asked_to_stop(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was suspended for long, and was taken for dead."""
    lock = OwnedLock(path)
    with handle_signals() as stop_request, lock:
        lock.owner.unlink()
        lock.owner.write_text("another process")
        deadline = time.monotonic() + 5
        while stop_request.signal is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stop_request.signal == "SIGTERM"
    assert "taken by another process" in capsys.readouterr().err
