"""The W&B mirror: modes, one run a trial, history that survives a kill."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from study.config import TrackingConfig, load_study
from study.plan import plan_trials
from study.record import wandb_mode
from study.record.files import TrialFolder
from study.record.tracking import Tracker
from study.record.wandb_mode import resolve_mode

AUTO = TrackingConfig()


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb_mode.wandb, "login", lambda **_: False)


def test_without_an_account_it_is_offline(no_account: None) -> None:
    assert resolve_mode(AUTO) == "offline"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_stated_mode_is_taken(no_account: None, mode: str) -> None:
    assert resolve_mode(TrackingConfig(mode=mode)) == mode


def test_the_environment_variable_is_heeded(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(AUTO) == "disabled"


@pytest.fixture
def logged_in(no_account: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(wandb_mode.wandb, "login", lambda **_: True)
    return monkeypatch


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_mode.wandb, "Settings", lambda: type("S", (), {"base_url": url})())


def test_logged_in_with_a_server_that_answers_it_is_online(logged_in: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()  # answers 501: it answers
        at(f"http://127.0.0.1:{server.server_port}", logged_in)
        assert resolve_mode(AUTO) == "online"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert resolve_mode(TrackingConfig(mode="online")) == "online"


def test_logged_in_with_a_server_that_refuses_it_is_offline(logged_in: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:9", logged_in)
    assert resolve_mode(AUTO) == "offline"
    assert resolve_mode(TrackingConfig(mode="online")) == "offline"  # once, not half a minute a trial
    logged_in.setenv("WANDB_MODE", "online")
    assert resolve_mode(AUTO) == "offline"


def test_a_server_that_says_nothing_costs_five_seconds(logged_in: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"http://127.0.0.1:{silent.getsockname()[1]}", logged_in)
        logged_in.setattr(wandb_mode, "ANSWER_SECONDS", 0.3)
        started = time.monotonic()
        assert resolve_mode(AUTO) == "offline"
        assert time.monotonic() - started < 2


def test_disabled_does_nothing(tmp_path: Path) -> None:
    trial = plan_trials(load_study("distinct", "smoke"))[0]
    tracker = Tracker(TrialFolder(tmp_path), trial, study="s", mode="disabled", tracking=AUTO, config={})
    tracker.log_epoch(1, {"a": 1.0})
    tracker.finish("done", {})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_wandb_is_not_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ConnectionResetError("its process was killed")

    monkeypatch.setattr("wandb.init", broken)
    trial = plan_trials(load_study("distinct", "smoke"))[0]
    tracker = Tracker(TrialFolder(tmp_path), trial, study="s", mode="offline", tracking=AUTO, config={})
    tracker.log_epoch(1, {"a": 1.0})
    tracker.finish("done", {})


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from study.config import TrackingConfig, load_study
    from study.plan import plan_trials
    from study.record.files import TrialFolder
    from study.record.tracking import Tracker
    trial = plan_trials(load_study("distinct", "smoke"))[0]
    tracker = Tracker(TrialFolder(Path(sys.argv[1])), trial, study="s", mode="offline",
                      tracking=TrackingConfig(), config={"depth": 8})
    for epoch in range(int(sys.argv[2])):
        tracker.log_epoch(epoch, {"val_accuracy": epoch / 10})
    print("logged", flush=True)
    time.sleep(float(sys.argv[3]))
    tracker.finish("done", {"val_accuracy": 0.5})
""")


def test_history_survives_kill_9_and_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen([*command, "30", "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        time.sleep(2.5)  # the flush interval is a second
        os.kill(process.pid, signal.SIGKILL)
    (killed,) = tmp_path.glob("wandb/offline-run-*")
    history = inspect(killed)
    assert history.count("val_accuracy") >= 30
    subprocess.run([*command, "31", "0"], check=True, capture_output=True)
    (finished,) = tmp_path.glob("wandb/offline-run-*")
    assert finished != killed
    assert finished.name.split("-", 3)[3] == killed.name.split("-", 3)[3]  # the same run id


def inspect(directory: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
