"""The W&B run of a trial: its mode, its history after a kill, and its charts."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb

from study.config.schema import TrackingConfig
from study.models.geometry import LayerGeometry
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record import wandb_mode
from study.record.layout import TrialFolder
from study.record.switch_weights import average_network
from study.record.wandb_mode import Mode, resolve_mode
from study.record.wandb_run import Tracker
from study.tasks.detection import LOSSES
from study.tasks.distributed import ProcessGroup
from study.training.preemption import StopRequest
from study.training.recorder import Recorder

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
def test_a_configured_mode_is_used(no_account: None, mode: str) -> None:
    assert resolve_mode(TrackingConfig(mode=mode)) == mode


def test_the_environment_variable_sets_the_mode(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(AUTO) == "disabled"


@pytest.mark.parametrize("home", [None, "", "/nowhere", "/dev/null", "/"])
def test_where_wandb_cannot_work_it_is_off_with_one_line(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    def login(**_: object) -> bool:  # at "/", which root can write to
        raise ValueError("1 validation error for Settings\nmode")

    for each in ("XDG_CACHE_HOME", "WANDB_MODE"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setattr(wandb_mode.wandb, "login", login)
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    warnings: list[str] = []
    assert resolve_mode(AUTO, warnings.append) == "disabled"
    [line] = warnings
    assert line.startswith("W&B is off, and trials are recorded without it: ")
    assert "\n" not in line
    assert resolve_mode(TrackingConfig(mode="disabled"), warnings.append) == "disabled"
    assert len(warnings) == 1


@pytest.fixture
def logged_in(no_account: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(wandb_mode.wandb, "login", lambda **_: True)
    return monkeypatch


def set_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_mode, "_server_url", lambda: url)


def test_with_a_login_and_a_server_that_responds_it_is_online(logged_in: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()  # the status 501 is a response
        set_server(f"http://127.0.0.1:{server.server_port}", logged_in)
        assert resolve_mode(AUTO) == "online"
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert resolve_mode(TrackingConfig(mode="online")) == "online"


def test_a_configured_server_is_the_one_that_is_asked() -> None:
    code = "from study.record.wandb_mode import *; print(resolve_mode(TrackingConfig(mode='online')))"
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "online\n"


def test_with_a_login_and_a_server_that_refuses_connections_it_is_offline(logged_in: pytest.MonkeyPatch) -> None:
    set_server("http://127.0.0.1:9", logged_in)
    assert resolve_mode(AUTO) == "offline"
    assert resolve_mode(TrackingConfig(mode="online")) == "offline"
    logged_in.setenv("WANDB_MODE", "online")
    assert resolve_mode(AUTO) == "offline"


def test_a_server_that_does_not_respond_is_given_five_seconds(logged_in: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_server(f"http://127.0.0.1:{silent.getsockname()[1]}", logged_in)
        logged_in.setattr(wandb_mode, "RESPONSE_SECONDS", 0.3)
        started = time.monotonic()
        assert resolve_mode(AUTO) == "offline"
        assert time.monotonic() - started < 2


def start_tracker(path: Path, mode: Mode, key: str = "sn-1-r0") -> Tracker:
    return Tracker(path, key, {"norm": "sn"}, study="s", mode=mode, tracking=AUTO, config={})


def test_disabled_does_nothing(tmp_path: Path) -> None:
    tracker = start_tracker(tmp_path, "disabled")
    tracker.log_epoch(1, {"a": 1.0})
    tracker.finish("done", {})
    assert list(tmp_path.iterdir()) == []


def test_a_trial_continues_when_wandb_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ConnectionResetError("its process was killed")

    monkeypatch.setattr("wandb.init", broken)
    tracker = start_tracker(tmp_path, "offline")
    tracker.log_epoch(1, {"a": 1.0})
    tracker.finish("done", {})


SCRIPT = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from study.config.schema import TrackingConfig
    from study.record.wandb_run import Tracker
    tracker = Tracker(Path(sys.argv[1]), "sn-1-r0", {"norm": "sn"}, study="s", mode=(sys.argv[4:] or ["offline"])[0],
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


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"errors": [{"message": "not you"}]}')


def test_a_run_that_the_server_refuses_is_offline(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        account = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a1" * 20}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), "3", "0", "online"]
        # Without the W&B service of other tests in this process, which has another server and knows the run's id.
        own = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
        subprocess.run(command, env={**own, **account}, check=True, capture_output=True, timeout=120)
        server.shutdown()
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert inspect(run).count('"type":"history"') == 3


def inspect(directory: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


RESNET_50 = {0: 1, 1: 10, 2: 13, 3: 19, 4: 10}  # norm layers of each stage
HEADS = {"fpn": 8, "box_head": 4, "mask_head": 4, "decoder": 2}  # norm layers of each role, more than in any network
SCORES = {
    "classification": ["train_accuracy", "train_loss", "val_accuracy", "val_score", "val_loss"],
    "detection": [f"train_{LOSSES[name]}" for name in LOSSES]
    + ["train_loss", *(f"val_{name}" for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "score"))],
}


def layers_of(counts: dict[Any, int], role: str | None = None) -> list[LayerGeometry]:
    return [
        LayerGeometry(layer=f"{role}{stage}.{index}", layer_index=index, depth_fraction=0.0, receptive_field=None,
                      stage=5 if role is None else stage, place="norm1", role=role or stage)
        for stage, count in counts.items() for index in range(count)
    ]  # fmt: skip


@pytest.fixture(params=["classification", "detection"], scope="module")
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records in the W&B run of a trial with 53 layers or more and all four normalizers, after three epochs."""
    task, path = request.param, tmp_path_factory.mktemp("r0")
    study = load_study("distinct", "smoke", ["factors.norm=['sn[in,ln,bn,gn]']", "replicates=1"])
    trial = plan_trials(study)[0]
    layers = layers_of(RESNET_50, "backbone") + (layers_of(HEADS) if task == "detection" else [])
    folder = TrialFolder(path)
    tracker = start_tracker(path, "offline", trial.key)
    recorder = Recorder(folder, trial, layers, tracker, 60.0, StopRequest(), ProcessGroup())
    history = torch.rand(3, len(layers), 2, 4).softmax(-1)
    logged = (*SCORES[task], "learning_rate")
    rows = [{"epoch": epoch, "name": name, "value": 0.5} for epoch in (1, 2) for name in logged]
    for epoch in range(3):
        means = average_network(history[epoch], layers, trial.pool, trial.space)
        rows += [{"epoch": epoch, "name": name, "value": mean} for name, mean in means.items()]
    recorder.load_state_dict({"rows": rows, "steps": [0, 1, 2], "history": history, "pruned": False})
    recorder.on_fit_start(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    tracker.log_switch_weights(history[-1], layers, trial.pool, trial.space)
    tracker.finish("done", {})
    (run,) = path.glob("wandb/offline-run-*")
    return [json.loads(line) for line in inspect(run).splitlines()]


def charts_of(records: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Names of the scalars in the history: those with a chart on the project page, and the hidden ones."""
    hidden = {
        record["metric"].get("name", "") for record in records
        if record["type"] == "metric" and record["metric"].get("options", {}).get("hidden")
    }  # fmt: skip
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    scalars = {
        name for item in items for name, value in item.items()
        if isinstance(value, (int, float)) and not name.startswith(("_", "switch_weights/"))
    }  # fmt: skip
    return scalars - hidden, scalars & hidden


def test_a_project_page_has_at_most_40_charts(recorded: list[dict[str, Any]]) -> None:
    shown, hidden = charts_of(recorded)
    assert {"train_loss", "val_score", "switch/mean/bn", "switch/var/gn"} <= shown
    assert len(shown) <= 40
    assert {"epoch", "learning_rate", "switch/stage4/var/ln"} <= hidden  # logged for the study's own pages


def test_no_scalar_is_of_a_single_layer(recorded: list[dict[str, Any]]) -> None:
    """Layers are rows of one table, so that the number of charts does not grow with depth."""
    _, hidden = charts_of(recorded)
    by_place = [name for name in hidden if name.startswith("switch/")]
    assert {name.split("/")[1] for name in by_place} <= {*(f"stage{stage}" for stage in RESNET_50), *HEADS}


def test_the_last_value_of_every_metric_is_a_number(recorded: list[dict[str, Any]]) -> None:
    """W&B nests the summary of some definitions below `last`, where tables and scatter plots do not find it."""
    last: dict[str, Any] = {}
    for record in recorded:
        last |= record.get("summary", {}).get("update", {})
    shown, hidden = charts_of(recorded)
    for name in shown | hidden:
        assert isinstance(last[name], (int, float)), name


def test_charts_are_against_the_epoch(recorded: list[dict[str, Any]]) -> None:
    steps = {record["metric"].get("name"): record["metric"].get("step_metric") for record in recorded
             if record["type"] == "metric"}  # fmt: skip
    shown, hidden = charts_of(recorded)
    assert {steps[name] for name in (shown | hidden) - {"epoch"}} == {"epoch"}


def test_a_tracker_knows_the_location_of_its_run(tmp_path: Path) -> None:
    wandb.teardown()  # with the runs of other tests, one of which may have this id
    assert start_tracker(tmp_path, "disabled").location == {"mode": "disabled", "url": None, "run": None}
    tracker = start_tracker(tmp_path, "offline")
    tracker.finish("done", {})
    assert tracker.location == {"mode": "offline", "url": None, "run": "sn-1-r0"}
