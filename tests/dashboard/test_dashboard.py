"""The study's pages on W&B: what they show, how they are saved to a fake server, and the errors without one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from study.analysis.report.report import Report
from study.config.errors import UserError
from study.config.schema import TrackingConfig
from study.dashboard import publish as publishing
from study.dashboard import sync as syncing
from study.dashboard.pages import build_report, build_workspace
from study.dashboard.publish import publish
from study.dashboard.summary import build_tables, name_figures, summarize_verdicts, write_summary_once
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder
from study.record.wandb_names import StudyRuns
from study.record.wandb_server import Connection, NotLoggedInError
from tests.analysis.conftest import build_study, write_study
from tests.conftest import Command

FACTORS: dict[str, Any] = {"norm": ["sn", "bn"], "depth": [8, 14]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished study, read only."""
    return write_study(tmp_path_factory.mktemp("runs") / "planted", build_study(replicates=2, **FACTORS))


@pytest.fixture(scope="module")
def report(planted: StudyFolder) -> Report:
    return Report(planted)


RUNS, STUDY = StudyRuns(study="planted"), build_study(replicates=1, norm=["sn"])


@pytest.fixture
def tracked(tmp_path: Path) -> StudyFolder:
    """A study of one trial, which has a W&B run, with a title that no address can hold as it is."""
    study = build_study(replicates=1, norm=["sn"]).model_copy(update={"title": "Is a/b - 100 % - useful?"})
    folder = write_study(tmp_path / "planted", study)
    (trial,) = folder.trials()
    (trial.wandb / f"offline-run-20260101_000000-{trial.key}").mkdir(parents=True)
    return folder


def spec_of(page: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(page._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec


def panels_of(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel["config"] for panel in section["panels"]]


def sections_of(report: Report) -> dict[str, Any]:
    bank = spec_of(build_workspace(report, RUNS, "me"))["section"]["panelBankConfig"]
    return {section["name"]: section for section in bank["sections"]}


# ----------------------------------------------------------------------------------------------- what they show


def test_a_workspace_has_answers_factors_choices_and_layers(report: Report) -> None:
    assert list(sections_of(report)) == [
        *(answer.title for answer in report.answers.values()), "Coverage", "By norm", "By depth",
        "How the choice is made", "The choice by stage", "Factors, choice and result", "Every layer of each trial",
    ]  # fmt: skip


def test_the_runs_are_those_of_the_study(report: Report) -> None:
    (runs,) = spec_of(build_workspace(report, RUNS, "me"))["section"]["runSets"]
    (group,) = runs["filters"]["filters"]
    assert (group["key"], group["op"], group["value"]) == ({"section": "run", "name": "group"}, "=", "planted")
    assert "config:levels.value.depth" in runs["runFeed"]["columnOrder"]


def test_answers_are_of_the_summary_run_and_curves_of_trials(report: Report) -> None:
    grids = [block for block in spec_of(build_report(report, RUNS, "me"))["blocks"] if block["type"] == "panel-grid"]
    kinds = [grid["metadata"]["runSets"][0]["filters"]["filters"][-1]["value"] for grid in grids]
    assert kinds == ["summary"] * 3 + ["train"] * 6


def test_a_section_a_factor_has_a_curve_a_level_with_mean_and_range(report: Report) -> None:
    panels = panels_of(sections_of(report)["By depth"])
    assert [panel["metrics"] for panel in panels] == [
        [name]
        for name in ("val_accuracy", "val_loss", "train_accuracy", "train_loss", "switch/mean/bn", "switch/var/bn")
    ]  # fmt: skip
    for panel in panels:
        assert (panel["groupBy"], panel["groupAgg"], panel["groupArea"]) == ("levels.value.depth", "mean", "minmax")
        assert panel["xAxis"] == "epoch"


def test_every_figure_and_table_of_the_summary_run_has_a_panel(report: Report) -> None:
    text = json.dumps(spec_of(build_workspace(report, RUNS, "me")))
    assert len(name_figures(report)) > 3
    for name in (*name_figures(report), *build_tables(report)):
        assert f'"{name}"' in text


def test_factors_lead_to_the_choice_in_parallel_coordinates(report: Report) -> None:
    (parallel,) = [p for p in panels_of(sections_of(report)["Factors, choice and result"]) if "columns" in p]
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:levels.value.norm", "config:levels.value.depth", "summary:switch/mean/bn", "summary:switch/var/bn",
        "summary:val_accuracy",
    ]  # fmt: skip


def test_heads_are_beside_the_backbone(tmp_path: Path) -> None:
    study = build_study(replicates=1, questions=("tasks",), norm=["sn"], dataset=["scenes"], task=["detection"])
    found = Report(write_study(tmp_path / "planted", study))
    panels = panels_of(sections_of(found)["The choice of backbone and heads"])
    assert len(panels) == 6  # of each statistic and normalizer
    assert panels[-1]["metrics"] == [
        f"switch/{role}var/bn" for role in ("", "fpn/", "box_head/", "mask_head/")
    ]  # fmt: skip


def test_a_study_without_a_choice_has_no_panel_of_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "planted", build_study(replicates=1, norm=["bn", "gn"]))
    assert "switch/" not in json.dumps(spec_of(build_workspace(Report(folder), RUNS, "me")))


# ------------------------------------------------------------------------------------------------ the summary run


def test_verdicts_and_tables_are_the_answers(report: Report) -> None:
    said = summarize_verdicts(report)
    assert said["useful/verdict"] == report.answers["useful"].verdict
    assert (said["trials/finished"], said["trials/planned"]) == (8, 8)
    shown = build_tables(report)
    assert len(shown["useful/effects"]) == len(report.answers["useful"].effects)
    assert (len(shown["coverage/cells"]), shown["coverage/cells"]["done"].sum()) == (4, 8)


@pytest.mark.parametrize("when", ["now", "then"])
def test_a_study_that_is_not_tracked_has_no_summary_run(tmp_path: Path, when: str) -> None:
    """Disabled now, or when the trials ran."""
    mode: Any = "disabled" if when == "now" else "offline"
    folder = write_study(tmp_path / "planted", STUDY.model_copy(update={"tracking": TrackingConfig(mode=mode)}))
    if when == "then":
        first, *_ = folder.trials()
        write_json(first.environment, {"wandb": {"mode": "disabled", "url": None, "run": None}})
    folder.report.mkdir()
    (folder.report / "answers.json").write_text("{}")
    write_summary_once(Report(folder))
    assert not folder.dashboard.exists()


def test_a_failure_of_wandb_is_not_the_studys(
    tracked: StudyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracked.report.mkdir()
    (tracked.report / "answers.json").write_text("{}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    write_summary_once(Report(tracked))
    assert "W&B: the summary run: " in caplog.text


# --------------------------------------------------------------------------------------------- with a server


class Server:
    """A fake of W&B's server that stores views by id."""

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            known = variables.get("id") or base64.b64encode(f"View:{len(self.views)}".encode()).decode()
            project = {"name": variables["projectName"], "entityName": variables["entityName"], "id": "p"}
            fields = ("name", "displayName", "spec", "type", "description")
            view = {"id": known, "project": project, **{name: variables[name] for name in fields}}
            self.views[known] = view
            return {"upsertView": {"view": dict(view), "inserted": True}}
        if "allViews" in query:
            found = [view for view in self.views.values() if view["name"] == variables["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": dict(view)} for view in found]}}}
        return {"view": dict(self.views[variables["reportId"]]) if variables["reportId"] in self.views else None}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    service = SimpleNamespace(execute_graphql=server.answer, app_url="https://wandb.example")
    projects: Callable[[str], list[Any]] = lambda _: [SimpleNamespace(name="normalizer-study")]  # noqa: E731
    api = SimpleNamespace(_service_api=service, default_entity="me", projects=projects)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    monkeypatch.setattr(publishing, "ask_server", lambda *_: Connection(mode="online", entity="me"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(publishing, "write_summary", lambda *_: None)
    return server


def test_pages_are_saved_once_and_then_updated(tracked: StudyFolder, server: Server) -> None:
    first = publish(tracked, STUDY)
    assert first["workspace"].startswith("https://wandb.example/me/normalizer-study?nw=")
    assert read_json(tracked.dashboard) == first
    for view in server.views.values():
        view["spec"] = view["spec"].replace("Coverage", "as it was")
    assert publish(tracked, STUDY) == first
    assert len(server.views) == 2
    assert all("Coverage" in view["spec"] for view in server.views.values())


def test_a_page_that_was_deleted_is_created_again(tracked: StudyFolder, server: Server) -> None:
    first = publish(tracked, STUDY)
    server.views.clear()
    server.views["another"] = {"name": "another"}
    second = publish(tracked, STUDY)
    assert second["workspace"] != first["workspace"]
    assert len(server.views) == 3


def test_what_wandb_refuses_is_one_line(tracked: StudyFolder, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("permission denied\nand a stack")

    monkeypatch.setattr(wandb.Api()._service_api, "execute_graphql", refuse)
    with pytest.raises(UserError, match=r"pages of me/normalizer-study cannot be saved: W&B says: permission denied$"):
        publish(tracked, STUDY)


# ------------------------------------------------------------------------------------------------ without one


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("", "dashboard: W&B: nobody is logged in on this machine; run `wandb login`. Then run the verbs `sync` and"),
        ("offline", "dashboard: WANDB_MODE=offline is set; unset it. Then run the verbs `sync` and `dashboard`"),
    ],
)
def test_without_a_server_the_specs_are_files_and_the_way_is_said(
    tracked: StudyFolder, monkeypatch: pytest.MonkeyPatch, mode: str, said: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(publishing, "ask_server", refuse)
    monkeypatch.setattr(publishing, "write_summary", lambda *_: None)
    with pytest.raises(UserError) as error:
        publish(tracked, STUDY)
    assert str(error.value).startswith(said)
    for kind in ("workspace", "report"):
        assert read_json(tracked.report / "dashboard" / f"{kind}.json")


def test_a_study_without_a_trial_has_no_pages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trial yet"):
        publish(write_study(tmp_path / "planned", STUDY, only=lambda _: False), STUDY)


@pytest.mark.parametrize(
    ("verb", "mode", "variable", "recorded", "why"),
    [
        ("sync", "disabled", "", "disabled", "1 of the trials ran without it"),
        ("dashboard", "disabled", "", "disabled", "1 of the trials ran without it"),
        ("sync", "auto", "", "disabled", "1 of the trials ran without it"),
        ("sync", "auto", "disabled", "offline", r"by tracking.mode or \$WANDB_MODE"),
    ],
)
def test_a_study_without_wandb_is_uploaded_only_if_the_user_asks_for_it(
    tracked: StudyFolder,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    mode: str,
    variable: str,
    recorded: str,
    why: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(publishing, "ask_server", refuse)
    monkeypatch.setattr(syncing, "ask_server", refuse)
    monkeypatch.setattr(publishing, "write_summary", lambda *_: None)
    (trial,) = tracked.trials()
    write_json(trial.environment, {"wandb": {"mode": recorded, "url": None, "run": None}})
    tracked.config.write_text(tracked.config.read_text().replace("mode: auto", f"mode: {mode}"))
    arguments = (verb, "--study", "planted", "--out", str(tracked.path.parent))
    found = command(*arguments)
    assert found.code == 2
    assert re.search(rf"{verb}: W&B is disabled \({why}\); .*, add --set tracking.mode=online$", found.err.strip())
    assert f"{verb}: W&B: nobody is logged in" in command(*arguments, "--set", "tracking.mode=online").err


def refuse(_: object) -> Connection:
    raise NotLoggedInError("nobody is logged in on this machine; run `wandb login`")


def test_two_syncs_at_once_are_one(tracked: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    with tracked.sync_lock(), pytest.raises(UserError, match=r"^sync: another `sync` of .*planted is running$"):
        syncing.sync(tracked, STUDY)
