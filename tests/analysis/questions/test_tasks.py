"""Question 3 on synthetic records: what decides it, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.analysis.questions.tasks import answer_tasks
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.report import write_report
from study.norms.names import NORMALIZERS
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import Truth, build_study, write_study
from tests.analysis.estimates import holds

Build = Callable[..., StudyRecords]
CROSS = {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}
SETTINGS = {
    "digits": {"dataset": "digits", "epochs": 6},
    "scenes": {"dataset": "scenes"},
    "segments": {"dataset": "scenes", "task": "segmentation"},
}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def write(truth: Truth | None = None, replicates: int = 4, only: Any = None, **study: Any) -> StudyRecords:
        planned = build_study(replicates=replicates, questions=("tasks",), **study)
        return load_study_records(write_study(tmp_path, planned, truth, only=only or (lambda _: True)))

    return write


def _by_task(trial: PlannedTrial) -> float:
    return 1.5 * (trial.config.task != "classification")


def _by_dataset(trial: PlannedTrial) -> float:
    return 1.5 * (trial.config.dataset == "scenes")


def _pairs(records: StudyRecords) -> dict[str, int]:
    return {item.comparison: item.n_pairs for item in answer_tasks(records).effects if item.measure.name == "effect"}


def test_a_planted_effect_of_the_task_is_found(build: Build) -> None:
    records = build(Truth(bn_logit=_by_task), **CROSS)
    answer = answer_tasks(records)
    assert answer.verdict == "supported"
    assert answer.answer.startswith("Yes, in this study: backbones choose differently by task.")
    weights = records.switch.merge(records.trials.query("task == 'segmentation' and dataset == 'scenes'")[["key"]])
    mean = weights.groupby("normalizer")["weight"].mean()
    assert f"segmentation on scenes in {mean['in']:.2f}, ln {mean['ln']:.2f}, bn {mean['bn']:.2f};" in answer.answer
    assert [item.comparison for item in answer.effects if item.measure.name == "effect"] == ["task", "dataset"]


def test_a_planted_effect_of_the_data_set_is_found(build: Build) -> None:
    answer = answer_tasks(build(Truth(bn_logit=_by_dataset), **CROSS))
    assert answer.verdict == "supported"
    assert "choose differently by dataset." in answer.answer


def test_no_effect_is_not_supported_where_seeds_move_as_much(build: Build) -> None:
    answer = answer_tasks(build(Truth(), **CROSS))
    assert answer.verdict != "supported"
    relative = [item.estimate for item in answer.effects if item.measure.name == "effect_relative"]
    assert len(relative) == 2
    assert all(abs(item.value or 0) < 0.8 and holds(item, 0) for item in relative)


def test_nothing_that_varies_is_nothing_to_refute(build: Build) -> None:
    assert answer_tasks(build(batch_size=[2, 16])).verdict == "not enough evidence"


def test_networks_that_hardly_differ_are_evidence_against(build: Build) -> None:
    quiet = Truth(logit_noise=0.01)
    assert answer_tasks(build(quiet, **CROSS)).verdict == "not supported"


def test_where_one_of_task_and_data_set_is_not_measured_the_question_stays_open(build: Build) -> None:
    settings = {**SETTINGS, "digits": {"dataset": "digits"}}
    records = build(
        Truth(logit_noise=0.01), setting=list(settings), joint={"setting": settings},
        only=lambda trial: trial.config.task == "classification",
    )  # fmt: skip
    answer = answer_tasks(records)
    assert answer.factors == {"dataset": "not supported", "task": "not enough evidence"}
    assert answer.verdict == "not enough evidence"
    assert "No run has a result at task = segmentation" in answer.answer


def test_what_heads_choose_decides_nothing(tmp_path: Path) -> None:
    found = []
    for bias in (0.0, 6.0):
        study = build_study(replicates=3, questions=("tasks",), **CROSS)
        folder = write_study(tmp_path / str(bias), study, Truth(bn_logit_of_heads=bias))
        records = load_study_records(folder)
        answer = answer_tasks(records)
        of_backbones = [item for item in answer.effects if item.measure.name != "effect_heads"]
        found.append(((answer.verdict, of_backbones), records.switch_epochs, records.heads["weight"].max()))
    assert found[0][0] == found[1][0]
    pd.testing.assert_frame_equal(found[0][1], found[1][1])
    assert found[0][2] < 0.9 < found[1][2]


def test_backbones_are_aligned_whatever_comes_after_them(build: Build) -> None:
    records = build(replicates=1, task=["segmentation", "detection"], dataset=["scenes"])
    assert records.switch.groupby("key")["depth_fraction"].agg(["min", "max"]).eq([0, 1]).all(axis=None)


def test_a_factor_of_several_fields_is_taken_apart(build: Build) -> None:
    records = build(Truth(bn_logit=_by_task), setting=list(SETTINGS), batch_size=[2, 16], joint={"setting": SETTINGS})
    assert _pairs(records) == {"task": 2, "dataset": 2, "batch_size": 3}
    answer = answer_tasks(records)
    assert answer.verdict == "supported"


def test_tasks_without_a_common_data_set_are_one_factor_with_it(build: Build) -> None:
    settings = {name: SETTINGS[name] for name in ("digits", "segments")}
    records = build(Truth(bn_logit=_by_task), setting=list(settings), batch_size=[2, 16], joint={"setting": settings})
    assert _pairs(records) == {"task on dataset": 2, "batch_size": 2}
    answer = answer_tasks(records)
    assert answer.verdict == "supported"
    assert "choose differently by task on dataset." in answer.answer


@pytest.mark.parametrize(
    ("study", "need"),
    [
        ({"replicates": 1, **CROSS}, "at least 3 replicates"),
        ({"replicates": 2, **CROSS}, "at least 3 replicates"),
        ({"only": lambda _: False, **CROSS}, "results at task = classification and dataset = scenes"),
        (
            {"only": lambda trial: trial.config.task == "classification", **CROSS},
            "results at task = segmentation and dataset = scenes",
        ),
        ({"batch_size": [2, 16]}, "cells that differ in task, or in dataset, alone"),
        ({"norm": ["bn", "gn"], **CROSS}, "runs of a switch norm"),
    ],
)
def test_too_little_is_not_enough_evidence(build: Build, study: dict[str, Any], need: str) -> None:
    answer = answer_tasks(build(**study))
    assert answer.verdict == "not enough evidence"
    assert any(need in item for item in answer.needs)


def test_metrics_of_a_task_are_those_of_its_trials_alone(build: Build) -> None:
    trials = build(replicates=1, task=["classification", "segmentation", "detection"], dataset=["scenes"]).trials
    for task, metric in (("classification", "accuracy"), ("segmentation", "miou"), ("detection", "box_ap")):
        of_task = trials["task"].eq(task)
        assert trials.loc[of_task, f"val_{metric}"].equals(trials.loc[of_task, "val_score"])
        assert trials.loc[~of_task, f"val_{metric}"].isna().all()
    assert trials["val_score"].between(0.8, 1).all()


class _Tables(HTMLParser):
    """The cells of every row of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.cell and self.rows and data.strip():
            self.rows[-1].append(data.strip())


def test_the_report_shows_heads_apart(tmp_path: Path) -> None:
    study = build_study(replicates=2, questions=("tasks",), batch_size=[2, 16], dataset=["scenes"],
                        task=["classification", "detection"])  # fmt: skip
    page = write_report(write_study(tmp_path, study, Truth(bn_logit_of_heads=9.0))).read_text(encoding="utf-8")
    rows = {tuple(row[:3]): row[3:] for row in _Tables(page).rows if row and row[0] == "detection on scenes"}
    assert rows.keys() == {("detection on scenes", role, "4") for role in ("backbone", "fpn", "box_head", "mask_head")}
    bn_of_means = {role: float(row[NORMALIZERS.index("bn")]) for (_, role, _), row in rows.items()}
    assert bn_of_means["backbone"] < 0.5 < 0.95 < bn_of_means["fpn"]


# ------------------------------------------------------------------------------------- heads and transfer


def test_heads_are_compared_within_their_task(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: 2.0 * (trial.config.dataset == "scenes"))
    answer = answer_tasks(build(truth, task=["segmentation", "detection"], dataset=["scenes", "scenes_fashion"]))
    heads = {item.comparison: item for item in answer.effects if item.measure.name == "effect_heads"}
    assert heads.keys() == {f"dataset, {role} of {task}" for role, task in (
        ("decoder", "segmentation"), ("fpn", "detection"), ("box_head", "detection"), ("mask_head", "detection")
    )}  # fmt: skip
    assert all((item.n_pairs, len(item.trials)) == (1, 8) for item in heads.values())
    assert heads["dataset, decoder of segmentation"].estimate.above(0.1)
    assert "How far heads are moved, within their task: dataset, box_head of detection" in answer.answer


MOVE = {"task": ["classification", "segmentation", "detection"], "dataset": ["scenes"],
        "start_rule": ["scratch", "fine_tune"], "start": {"cell": {"task": "classification"}}}  # fmt: skip


def _kept(trial: PlannedTrial) -> float:
    """Tasks choose differently from scratch; by fine-tuning, all continue from the choice of classification."""
    return 2.0 * (trial.config.task != "classification") * (trial.config.start_rule == "scratch")


def test_transfer_compares_before_with_after(build: Build) -> None:
    records = build(Truth(bn_logit=_by_task), **MOVE)
    moved = {
        item.comparison: item for item in answer_tasks(records).effects if item.measure.name == "transfer_distance"
    }
    assert list(moved) == [f"classification on scenes -> {task} on scenes" for task in MOVE["task"]]
    assert holds(moved["classification on scenes -> classification on scenes"].estimate, 0)
    into = moved["classification on scenes -> detection on scenes"]
    assert into.estimate.above(0.1)
    rows = records.trials.loc[list(into.trials)]
    assert {*zip(rows["task"], rows["start_rule"], strict=True)} == {
        ("classification", "scratch"), ("detection", "fine_tune")
    }  # fmt: skip
    assert (into.n_pairs, into.n_pairs_planned, len(rows)) == (4, 4, 8)


def test_tasks_that_start_alike_stay_closer_than_from_scratch(build: Build) -> None:
    answer = answer_tasks(build(Truth(bn_logit=_kept), **MOVE))
    found = {item.comparison: item for item in answer.effects if item.measure.name == "effect_after"}
    assert list(found) == ["task"]
    (scratch,) = [item for item in answer.effects if (item.measure.name, item.comparison) == ("effect", "task")]
    assert (found["task"].estimate.high or 1) < (scratch.estimate.low or 0)
    assert answer.verdict == "supported"  # by networks from scratch
    for words in ("How far fine-tuning moves what", "Displacements between fine-tuned networks: task"):
        assert words in answer.answer


@pytest.mark.parametrize(
    "study",
    [CROSS, {**CROSS, "start_rule": ["scratch", "fine_tune"]}],  # on from the own setting: no transfer
    ids=["no starts", "no other setting"],
)
def test_nothing_is_said_of_transfer_where_there_is_none(build: Build, study: dict[str, Any]) -> None:
    answer = answer_tasks(build(replicates=2, **study))
    assert "fine-tun" not in answer.answer
    assert {item.measure.name for item in answer.effects}.isdisjoint({"transfer_distance", "effect_after"})


@pytest.mark.parametrize("replicates", [1, 2])
def test_transfer_of_few_replicates_has_no_interval(build: Build, replicates: int) -> None:
    effects = answer_tasks(build(replicates=replicates, **MOVE)).effects
    moved = [item for item in effects if item.measure.name in ("transfer_distance", "effect_after")]
    assert moved
    assert all(item.estimate.low is None for item in moved)


def test_what_transfer_lacks_is_counted(build: Build) -> None:
    def done(trial: PlannedTrial) -> bool:
        return trial.config.task != "detection" or trial.config.start_rule == "scratch"

    records = build(only=done, **MOVE)
    moved = {
        item.comparison: item for item in answer_tasks(records).effects if item.measure.name == "transfer_distance"
    }
    lacking = moved["classification on scenes -> detection on scenes"]
    assert (lacking.estimate.value, lacking.n_pairs, lacking.missing) == (None, 0, {"done before, planned after": 4})
