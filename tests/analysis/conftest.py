"""Writes studies to disk as training would, with a known truth planted in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.analysis.report.report import Report
from study.bench import synthetic_records
from study.bench.synthetic_records import Truth, write_trial
from study.config.schema import StudyConfig
from study.plan.loading import study_from_dict
from study.record.layout import StudyFolder

__all__ = ["GRID", "Truth", "build_study", "write_study", "write_trial"]


def build_study(
    replicates: int = 3,
    questions: tuple[str, ...] = ("useful", "impacts"),
    blocks: Any = (),
    joint: Any = None,
    start: Any = None,
    **factors: Any,
) -> StudyConfig:
    data: dict[str, Any] = {
        "name": "planted", "scale": "tests", "title": "A planted study", "question": "Is the planted truth found?",
        "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
        "factors": factors, "blocks": list(blocks), "joint": joint or {}, "start": start or {},
        "analysis": {"questions": list(questions)},
    }  # fmt: skip
    return study_from_dict(data, "test")


def write_study(path: Path, study: StudyConfig, truth: Truth | None = None, **which: Any) -> StudyFolder:
    """A study on disk; `only` says which trials have a result, `diverged` which of them diverged."""
    folder = StudyFolder(path)
    synthetic_records.write_study(folder, study, truth or Truth(), **which)
    return folder


GRID: dict[str, Any] = {
    "norm": ["sn", "bn"], "depth": [8, 14], "batch_size": [2, 16], "initialization": ["he_normal", "xavier_uniform"],
}  # fmt: skip


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished study, read only: sn gains 0.03 over bn; B moves the logit of bn by 1.5, depth by 1."""
    truth = Truth(
        accuracy=lambda trial: 0.93 if trial.config.norm == "sn" else 0.90,
        bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16) + (trial.config.depth == 14),
    )
    return write_study(tmp_path_factory.mktemp("planted"), build_study(replicates=4, **GRID), truth)


@pytest.fixture(scope="session")
def finished(planted: StudyFolder) -> Report:
    """The report of the planted study; answers and figures that a test has computed are not computed again."""
    return Report(planted)
