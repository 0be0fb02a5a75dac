"""Every feature of a study that the documentation describes goes through all verbs, over synthetic records."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.analysis.report.report import Report
from study.bench.synthetic_records import Truth, write_study, write_trial
from study.cli.main import main
from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.plan.trials import plan_corners, plan_trial
from study.record.environment import describe_environment
from study.record.layout import StudyFolder
from study.sweep.study_file import write_study as write_study_file
from tests.conftest import ROOT

BASE: dict[str, Any] = {"norm": ["sn", "bn"]}
QUESTIONS = ["useful", "impacts", "tasks"]


def read_snippet(page: str, start: str) -> dict[str, Any]:
    """The YAML that a documentation page has in backticks, from its first words on."""
    (found,) = re.findall(rf"`({re.escape(start)}[^`]*)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    return dict(yaml.safe_load(found))


def read_block(page: str) -> dict[str, Any]:
    """The first block of YAML in a documentation page."""
    (found, *_) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    return dict(yaml.safe_load(found))


def read_settings(page: str, name: str) -> list[str]:
    """The settings of the first command or option in a page that contains a name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\n", " ")
    found = re.findall(r"--set (?:'[^']*'|\S+)", next(part for part in text.split("`") if f"--set '{name}" in part))
    return [shlex.split(each)[1] for each in found]


def build_joint(snippet: dict[str, Any]) -> dict[str, Any]:
    """A study with a factor whose levels are in `joint` alone, or go with those of a field."""
    (factor, levels), *_ = snippet["joint"].items()
    return {"factors": {**BASE, factor: [*levels] if len(levels) > 1 else ["sgd", *levels]}, **snippet}


FEATURES: dict[str, dict[str, Any]] = {
    "blocks": {"factors": {"depth": [8, 14], "batch_size": [2, 16], "decay": ["cosine", "step"]},
               **read_snippet("extending.md", "blocks: ")},
    "a level that sets fields": build_joint(read_snippet("extending.md", "joint: {solver")),
    "a factor in joint alone": build_joint(read_snippet("extending.md", "joint: {size")),
    "warm starts": read_block("starts.md"),
    "tuned, and seeds apart": {"factors": {**BASE, "learning_rate": [0.1]}, "settings": [
        *read_settings("plan.md", "factors.learning_rate"), *read_settings("plan.md", "seeds.apart"),
    ]},
    "lists, booleans and nothing as levels": {
        "factors": {"decay_milestones": [[0.5], [0.3, 0.6]], "zero_last_gamma": [True, False],
                    "logit_gradient_clip": [None, 1.0]},
    },
    "a search": {"factors": {**BASE, "learning_rate": {"low": 0.01, "high": 1.0, "log": True},
                             "size": ["small", "large"], "decay_milestones": [[0.5], [0.3, 0.6]]},
                 **read_snippet("extending.md", "joint: {size"), **read_snippet("extending.md", "search: ")},
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_all_verbs_and_questions_of_a_feature(
    feature: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.dashboard.publish.write_summary", lambda *_: None)  # it starts a service
    build_report = functools.cache(Report)  # both verbs would compute it
    for module in ("study.analysis.report.report", "study.dashboard.publish"):
        monkeypatch.setattr(f"{module}.Report", lambda folder, analysis=None: build_report(folder))
    content = {"title": "t", "question": "q", "replicates": 2, **FEATURES[feature]}
    settings = [*content.pop("settings", []), f"analysis.questions={json.dumps(QUESTIONS)}"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study(str(file), "smoke", settings)
    folder = StudyFolder(tmp_path / study.name)
    write_records(folder, study)
    flags = ["--study", str(file), "--scale", "smoke", "--out", str(tmp_path)]
    flags += [argument for setting in settings for argument in ("--set", setting)]
    first, second, *_ = (trial.key for trial in folder.trials())
    for verb in (["plan"], ["status"], ["report"], ["diff", first, second]):
        assert main([*verb, *flags]) == 0, verb
    answers = json.loads((folder.report / "answers.json").read_text())["questions"]
    assert list(answers) == QUESTIONS
    assert main(["dashboard", *flags]) == 2
    assert "The specifications of the pages are in" in capsys.readouterr().err


def write_records(folder: StudyFolder, study: StudyConfig) -> None:
    """Records of all trials of a grid, and of a search those at the corners of its space."""
    if study.search is None:
        write_study(folder, study, Truth())
    else:
        write_study_file(study, folder, describe_environment("python run_study.py"))
        for corner in plan_corners(study):
            for replicate in range(study.replicates):
                write_trial(folder, plan_trial(study, corner.levels, replicate), Truth())
    (next(folder.trials()).wandb / "offline-run-20260101_000000-x").mkdir(parents=True)
