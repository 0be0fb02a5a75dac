"""The W&B run of a trial without a server: what it holds, and its charts. `tests/dashboard` has a server."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.config.schema import TrackingConfig
from study.models.geometry import LayerGeometry
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import TrialFolder
from study.record.switch_weights import average_network
from study.record.wandb_names import StudyRuns
from study.record.wandb_run import Tracker
from study.record.wandb_server import Mode
from study.record.wandb_status import RunStatus
from study.tasks.detection import LOSSES
from study.tasks.distributed import ProcessGroup
from study.training.preemption import StopRequest
from study.training.recorder import Recorder

DONE = RunStatus(status="done", attempt=1)


def runs_of(study: str = "s") -> StudyRuns:
    return StudyRuns(study=study, study_id="ab12cd", tracking=TrackingConfig())


def start_tracker(path: Path, mode: Mode, key: str = "sn-1-r0") -> Tracker:
    tracker = Tracker(path, key, runs_of(), mode)
    tracker.start({"norm": "sn"}, {"attempts": 1})
    return tracker


def test_disabled_does_nothing(tmp_path: Path) -> None:
    tracker = start_tracker(tmp_path, "disabled")
    tracker.log_epoch(1, {"a": 1.0})
    tracker.end(DONE)
    assert tracker.close() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_trial_continues_when_wandb_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ConnectionResetError("its process was killed")

    monkeypatch.setattr("wandb.init", broken)
    tracker = start_tracker(tmp_path, "offline")
    tracker.log_epoch(1, {"a": 1.0})
    tracker.end(DONE)
    assert tracker.close() == "its process was killed"


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
    tracker.log_switch_weights(history[-1], layers, trial.pool, trial.space, epochs=2)
    tracker.end(DONE)
    assert tracker.close() == ""
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
    run = "sn-1-r0-ab12cd"
    runs = replace(runs_of(), project_url="https://wandb.example/me/p")
    locate = {mode: Tracker(tmp_path, "sn-1-r0", runs, mode).location for mode in ("disabled", "offline", "online")}
    assert locate == {
        "disabled": {"mode": "disabled", "url": None, "run": None},
        "offline": {"mode": "offline", "url": None, "run": run},
        "online": {"mode": "online", "url": f"https://wandb.example/me/p/runs/{run}", "run": run},
    }


def test_a_folder_of_an_older_version_keeps_the_names_of_its_runs() -> None:
    runs = replace(runs_of(), study_id="")
    assert (runs.group, runs.build_run_id("sn-1-r0")) == ("s", "sn-1-r0")
