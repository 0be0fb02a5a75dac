from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from study.analysis.report import write_report
from study.plan import plan_trials
from study.reading import UserError
from study.record.files import StudyFolder, write_json
from tests.analysis.conftest import Truth, build_study, write_study

NASTY = "<script>alert('x')</script> & \"quotes\" </style>"


class _Page(HTMLParser):
    """The text and the attributes of a page, without what is inside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def report(planted: StudyFolder) -> Path:
    return write_report(planted)


def _strict_json(path: Path) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def test_the_page_holds_answers_evidence_and_plan(report: Path, planted: StudyFolder) -> None:
    page = _Page(report.read_text(encoding="utf-8"))
    assert page.count("section") == 4
    assert page.count("figure") == 14
    for text in ("A planted study", "supported", "Plan and coverage", "How it was made", "abc123", "the last epoch",
                 f"python run_study.py --study {planted.path.name} --set replicates=1"):  # fmt: skip
        assert text in page.text


def test_the_page_is_self_contained(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    page = _Page(html)
    assert page.count("link") == page.count("iframe") == page.count("img") == 0
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name) or str(attributes[name]).startswith("#")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert html.count("plotly.js v") <= 2  # inlined once; its licence names itself


def test_answers_are_strict_json_in_the_contracts_shape(report: Path) -> None:
    answers = _strict_json(report.parent / "answers.json")
    assert answers["schema"] == 1
    assert answers["study"] == "planted"
    questions = answers["questions"]
    assert isinstance(questions, dict)
    assert list(questions) == ["useful", "impacts"]
    for answer in questions.values():
        assert {"verdict", "answer", "effects", "n_done", "n_planned", "rule", "needs"} <= set(answer)
        assert {"estimate", "interval", "n"} <= set(answer["effects"][0])


def test_same_records_give_the_same_bytes(report: Path, planted: StudyFolder, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(planted.path, copy, ignore=shutil.ignore_patterns("report"))
    again = write_report(StudyFolder(copy))
    for name in ("answers.json", "report.html", "trials.parquet", "switch_weights.parquet"):
        assert (again.parent / name).read_bytes() == (report.parent / name).read_bytes(), name


def test_the_tables_hold_all_data(report: Path) -> None:
    trials = pd.read_parquet(report.parent / "trials.parquet")
    weights = pd.read_parquet(report.parent / "switch_weights.parquet")
    assert len(trials) == 64
    assert set(weights["epoch"]) == {0, 1, 2, 3, 4}
    assert weights["trial_id"].nunique() == 8


def test_an_empty_study_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(norm=["sn", "bn"], batch_size=[2, 16]), only=lambda trial: False)
    path = write_report(folder)
    assert "No trial has finished" in _Page(path.read_text(encoding="utf-8")).text
    _strict_json(path.parent / "answers.json")
    assert len(pd.read_parquet(path.parent / "trials.parquet")) == 12
    assert len(pd.read_parquet(path.parent / "switch_weights.parquet")) == 0


@pytest.mark.parametrize("norm", ["sn", "bn"])
def test_a_study_of_one_trial(tmp_path: Path, norm: str) -> None:
    folder = write_study(tmp_path, build_study(replicates=1, norm=[norm]))
    page = _Page(write_report(folder).read_text(encoding="utf-8"))
    assert "1 of 1 trials have a result" in page.text
    assert "nan" not in page.text.lower().split()


def test_a_study_without_norm_depth_and_batch_size(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=2, weight_decay=[0, 1e-4], train_samples=[None, 512]))
    assert write_report(folder).exists()


def test_only_the_questions_asked(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=1, questions=("impacts",), norm=["sn", "bn"]))
    page = write_report(folder)
    assert list(_strict_json(page.parent / "answers.json")["questions"]) == ["impacts"]  # type: ignore[call-overload]


def test_many_norms_and_a_batch_of_one(tmp_path: Path) -> None:
    norms = ["sn", "ssn", "bn", "gn", "in", "ln", "sn-uniform", "sn-shared", "sn[in,ln]"]
    folder = write_study(tmp_path, build_study(replicates=2, norm=norms, batch_size=[1, 16]))
    assert _Page(write_report(folder).read_text(encoding="utf-8")).count("figure") == 8  # one B: no factor


def test_nasty_text_is_escaped(tmp_path: Path) -> None:
    study = build_study(replicates=2, norm=["sn", "bn"]).model_copy(update={"title": NASTY, "question": NASTY})
    folder = write_study(tmp_path, study, only=lambda trial: trial.replicate == 0)
    for trial in plan_trials(study)[2:]:
        write_json(folder.trial(trial.trial_id, 1).state, {"state": "failed", "attempt": 1, "reason": NASTY})
    html = write_report(folder).read_text(encoding="utf-8")
    page = _Page(html)
    assert "alert('x')" not in html
    assert page.text.count("alert('x')") == 5  # title twice, question, two reasons
    plain = write_report(write_study(tmp_path / "plain", build_study(replicates=1, norm=["sn", "bn"])))
    assert page.count("script") == _Page(plain.read_text(encoding="utf-8")).count("script")


def test_every_trial_diverged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=2, norm=["sn", "bn"]), Truth(), diverged=lambda trial: True)
    path = write_report(folder)
    assert "4 diverged" in _Page(path.read_text(encoding="utf-8")).text
    _strict_json(path.parent / "answers.json")


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study here"):
        write_report(StudyFolder(tmp_path))
