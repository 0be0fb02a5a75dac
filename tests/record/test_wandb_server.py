"""What is asked of a W&B server, and what is made of its answers, refusals and silence."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from wandb.sdk import wandb_setup

from study.config.schema import TrackingConfig
from study.record import wandb_server
from study.record.wandb_server import (
    Connection,
    ServerError,
    ServerWatch,
    ask_server,
    connect,
    delete_run,
    list_runs,
)  # fmt: skip
from tests.services.wandb_server import ENTITY, KEY, Fault, Run, WandbServer

AUTO, ONLINE = TrackingConfig(), TrackingConfig(mode="online")


@pytest.fixture(scope="module")
def shared() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def server(shared: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A healthy server that knows the user."""
    use(shared.url, monkeypatch)
    shared.fault = None
    yield shared
    shared.fault = None
    shared.runs.clear()
    assert not shared.unknown


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", f"{tmp_path}/netrc")


def use(url: str, monkeypatch: pytest.MonkeyPatch, key: str = KEY) -> None:
    settings = wandb_setup.singleton().settings
    monkeypatch.setattr(settings, "base_url", url)
    monkeypatch.setenv("WANDB_API_KEY", key)


def test_without_an_account_it_is_offline_and_only_who_asked_for_more_is_told() -> None:
    assert connect(AUTO) == Connection(mode="offline")
    found = connect(ONLINE)
    assert found.mode == "offline"
    assert found.warning.startswith("W&B: nobody is logged in on this machine; run `wandb login`. Trials are recorded")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_configured_mode_is_used(server: WandbServer, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect(TrackingConfig(mode=mode)) == Connection(mode=mode)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert connect(AUTO) == Connection(mode=mode)


@pytest.mark.parametrize("home", [None, "", "/nowhere", "/dev/null"])
def test_where_wandb_cannot_work_it_is_off_with_one_line(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    found = connect(AUTO)
    assert found.mode == "disabled"
    assert found.warning.startswith("W&B is off, and trials are recorded without it: ")
    assert "\n" not in found.warning


def test_a_server_that_knows_the_user_is_online_and_has_an_address(server: WandbServer) -> None:
    for tracking in (AUTO, ONLINE):
        url = f"{server.url}/{ENTITY}/normalizer-study"
        assert connect(tracking) == Connection(mode="online", entity=ENTITY, project_url=url)
    other = connect(TrackingConfig(entity="me", project="a b"))
    assert other.project_url == f"{server.url}/me/a%20b"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "refuses the API key of this machine; run `wandb login` (HTTP status 401)"),
        (403, "does not allow this to the user of this machine's API key; see `wandb login` and tracking.entity (HTTP"),
        (404, "does not know this address; see $WANDB_BASE_URL, tracking.entity and tracking.project (HTTP status"),
        (429, "limits the rate of requests; try again in some minutes (HTTP status 429)"),
        (503, "has a fault; try again later (HTTP status 503)"),
        (
            302,
            "answers in a way that W&B does not; see $WANDB_BASE_URL (HTTP status 302)",
        ),  # followed, it would send the key elsewhere
        ("gone", "cannot be reached"),
        ("silent", "does not answer within 0 s"),
    ],
)
def test_a_refusal_is_one_line_and_costs_one_short_request(
    server: WandbServer, fault: Fault, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_server, "RESPONSE_SECONDS", 0.3)
    server.fault, before, started = fault, server.calls.total(), time.monotonic()
    found = connect(AUTO)
    assert time.monotonic() - started < 1
    assert server.calls.total() == before + 1
    assert found.mode == "offline"
    assert found.warning.startswith(f"W&B: {server.url} {said}")
    assert found.warning.endswith(". Trials are recorded offline; the verb `sync` uploads them later")
    assert KEY not in found.problem


def test_a_fault_while_trials_run_is_said_once_and_so_is_its_end(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_server, "WATCH_SECONDS", 0.02)
    watch, lines = ServerWatch(AUTO), []
    for fault in (None, 503, 500, None):
        server.fault, asked = fault, server.calls.total()
        while server.calls.total() < asked + 3:
            lines += filter(None, [watch.poll()])
            time.sleep(0.01)
    assert len(lines) == 2
    assert lines[0].startswith(f"W&B: {server.url} has a fault; try again later (HTTP status 50")
    assert lines[1] == "W&B: the server works again"
    assert "HTTP status 500" in watch.problem  # for the last line


def test_a_server_that_is_not_wandb_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        use(f"http://127.0.0.1:{other.server_port}", monkeypatch)
        assert "answers in a way that W&B does not" in connect(AUTO).problem


@pytest.mark.parametrize("key", ["short", "x y" * 20])
def test_a_key_that_cannot_be_one_is_said_and_not_shown(
    server: WandbServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server.url, monkeypatch, key)
    found = connect(AUTO)
    assert found.mode == "offline"
    assert "the API key of this machine is not valid" in found.problem
    assert key not in found.problem


def test_the_runs_of_a_group_are_counted_and_deleted(server: WandbServer) -> None:
    lines = {"wandb-history.jsonl": {0: "{}", 1: "{}"}, "wandb-summary.json": {0: '{"status": "done"}'}}
    server.runs |= {"a": Run("a", group="mine", lines=lines), "b": Run("b", group="another")}
    connection = ask_server(AUTO)
    (run,) = list_runs(connection, AUTO, "mine").values()
    assert (run.name, run.lines, run.summary, run.state) == ("a", 2, {"status": "done"}, "running")
    delete_run(run)
    assert list(server.runs) == ["b"]
    server.fault = 500
    with pytest.raises(ServerError, match="HTTP status 500"):
        list_runs(connection, AUTO, "mine")
