from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study.analysis.report.comparison import write_comparison
from study.analysis.report.page import build_factor_rows, format_ranges, group_figures, place_interval, place_zero
from study.analysis.report.report import Report, write_report
from study.analysis.statistics.intervals import Estimate
from study.config.errors import UserError
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder
from tests.analysis.conftest import GRID, Truth, build_study, write_study
from tests.conftest import Command

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
def report(finished: Report) -> Path:
    return finished.write()


@pytest.fixture(scope="module")
def page(report: Path) -> _Page:
    return _Page(report.read_text(encoding="utf-8"))


def _strict_json(path: Path) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def test_the_page_holds_answers_evidence_and_plan(page: _Page, finished: Report, planted: StudyFolder) -> None:
    assert page.count("article") == 2
    assert page.count("figure") == sum(len(figures) for figures in finished.figures.values()) > 8
    for text in ("A planted study", "supported", "Plan and coverage", "How it was made", "abc123", "the last epoch",
                 f"python run_study.py --study {planted.path.name} --set replicates=1"):  # fmt: skip
        assert text in page.text


def test_without_heads_there_is_no_table_of_them(page: _Page) -> None:
    assert "What the heads chose" not in page.text


def test_the_page_is_self_contained(page: _Page, report: Path) -> None:
    html = report.read_text(encoding="utf-8")
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


def test_tables_for_spreadsheets_and_latex(report: Path) -> None:
    tables = report.parent / "tables"
    names = {"effects_useful", "effects_impacts", "coverage", "trials"}
    assert {path.name for path in tables.iterdir()} == {name + end for name in names for end in (".csv", ".tex")}
    effects = pd.read_csv(tables / "effects_impacts.csv")
    answers = _strict_json(report.parent / "answers.json")["questions"]["impacts"]["effects"]  # type: ignore[index]
    assert effects["comparison"].tolist() == [effect["comparison"] for effect in answers]
    np.testing.assert_allclose(effects["estimate"], [effect["estimate"] for effect in answers], rtol=1e-5)
    assert pd.read_csv(tables / "coverage.csv")["done"].tolist() == [4] * 16
    trials = pd.read_csv(tables / "trials.csv")
    assert trials["row"].tolist() == list(range(64))
    latex = (tables / "effects_impacts.tex").read_text("utf-8")
    assert latex.count(r"\toprule") == 2  # of the first page, and of those after it
    assert r"batch\_size" in latex
    assert len({line.count(" & ") for line in latex.splitlines() if " & " in line}) == 1


@pytest.mark.slow
def test_two_hundred_and_fifty_trials_are_less_than_seven_megabytes(tmp_path: Path) -> None:
    grid = {**GRID, "solver": ["sgd", "adamw"], "decay": ["cosine", "step"]}
    folder = write_study(tmp_path, build_study(replicates=4, **grid))
    page = write_report(folder)
    html = page.read_text("utf-8")
    assert html.count('<tr id="trial-') == 256
    assert len(html.encode()) < 7_000_000


@pytest.mark.parametrize(
    ("rows", "text"), [([], ""), ([4], "4"), ([0, 1, 2, 8], "0-2,8"), ([5, 3, 4, 9, 9, 10], "3-5,9-10")]
)
def test_row_numbers_in_a_link(rows: list[int], text: str) -> None:
    assert format_ranges(rows) == text


def test_intervals_of_a_table_share_a_scale() -> None:
    low, high = Estimate(value=-0.1, low=-0.2, high=0.1, n=3), Estimate(value=0.1, low=0.06, high=0.2, n=3)
    places = [place_interval(each, [low, high], 0.05) for each in (low, high)]
    assert [place.clear for place in places] == [False, True]
    assert (places[0].low, places[0].value, places[1].value, places[1].high) == (4, 27, 73, 96)
    assert places[0].line == places[1].line == 61.5


def test_all_groups_of_a_table_have_zero_at_the_same_place() -> None:
    groups = [[Estimate(value=-0.1, low=-0.2, high=0.2, n=3)], [Estimate(value=40.0, low=20.0, high=60.0, n=3)]]
    zero = place_zero(groups)
    places = [place_interval(group[0], group, zero=zero) for group in groups]
    assert places[0].line == places[1].line
    assert (places[0].low, places[1].high) == (4, 96)
    assert place_zero([]) == place_zero([[]]) == 0


def test_a_question_about_factors_starts_with_a_verdict_on_each(page: _Page, finished: Report) -> None:
    answer = finished.answers["impacts"]
    assert f"Tested: {answer.claim}." in page.text.replace("\u00a0", " ")
    rows = build_factor_rows(answer)
    assert {row.name: row.verdict for row in rows if not row.is_reference} == answer.factors
    assert {row.name for row in rows if row.is_reference} == {"another seed", "places in a block"}
    shown = [row.effect.estimate.value for row in rows if not row.is_reference]
    assert shown == sorted(shown, reverse=True)  # type: ignore[type-var]
    for row in rows:
        assert f"{row.name} " in page.text


def test_figures_of_a_factor_stand_together() -> None:
    figures = [{"group": name, "id": number} for number, name in enumerate([None, "B", "B", "depth", None, None])]
    assert [(name, len(members)) for name, members in group_figures(figures)] == [
        (None, 1), ("B", 2), ("depth", 1), (None, 2),
    ]  # fmt: skip


def test_every_kind_of_number_is_defined_once(page: _Page) -> None:
    targets = {str(attributes["href"])[1:] for _, attributes in page.tags if "#measure-" in str(attributes.get("href"))}
    defined = [attributes["id"] for _, attributes in page.tags if str(attributes.get("id")).startswith("measure-")]
    assert set(defined) == targets
    assert len(defined) == len(targets) > 5


def test_every_link_has_a_target(page: _Page) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"}
    assert links <= ids


def test_one_replicate_has_no_interval(tmp_path: Path) -> None:
    page = _Page(write_report(write_study(tmp_path, build_study(replicates=1, norm=["sn", "bn"]))).read_text("utf-8"))
    assert "one replicate, so no interval is defined" in page.text
    assert "no interval: 1 replicate" in page.text
    assert "undefined" not in page.text


def test_a_result_of_another_version_says_so(tmp_path: Path) -> None:
    study = build_study(replicates=2, norm=["sn", "bn"])
    folder = write_study(tmp_path, study)
    first, second = (folder.trial(trial.trial_id, trial.replicate).result for trial in plan_trials(study)[:2])
    write_json(first, {**(read_json(first) or {}), "schema": 2})
    second.write_bytes(second.read_bytes()[:100])
    page = _Page(write_report(folder).read_text("utf-8"))
    assert "has schema 2, but this version reads schema 1" in page.text
    assert "result.json: not valid JSON: EOF" in page.text
    assert "2 damaged" in page.text


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5])
def test_a_half_written_study_is_one_line(planted: StudyFolder, tmp_path: Path, share: float) -> None:
    text = planted.config.read_text("utf-8").partition("analysis_plan:")[0]
    folder = StudyFolder(tmp_path)
    folder.config.write_text(text[: int(share * len(text))], "utf-8")
    with pytest.raises(UserError, match=r"^[^\n]*study\.yaml[^\n]*$"):
        write_report(folder)


def test_studies_side_by_side(planted: StudyFolder, tmp_path: Path) -> None:
    other = build_study(replicates=2, questions=("impacts", "tasks"), **{**GRID, "depth": [8, 20]})
    folder = write_study(tmp_path, other, only=lambda trial: trial.replicate == 0)
    planted.report.mkdir(exist_ok=True)
    (planted.report / "report.html").touch()
    page = _Page(write_comparison(planted, [folder]).read_text("utf-8"))
    assert page.count("article") == 3  # questions
    for text in (str(tmp_path), "not asked", "factors.depth", "[8, 20]", "batch_size", "no interval: 1 replicate"):
        assert text in page.text
    assert "factors.norm" not in page.text  # the same in both
    links = {str(attributes.get("href")) for tag, attributes in page.tags if tag == "a"}
    assert {link for link in links if "#" not in link or link.startswith("report")} == {
        "report.html",
        "report.html#answer-useful",
        "report.html#answer-impacts",
    }  # the other has none
    assert "training loss" not in page.text  # of one of them alone


def test_compare_on_the_command_line(planted: StudyFolder, command: Command, tmp_path: Path) -> None:
    shutil.copytree(planted.path, tmp_path / "planted", ignore=shutil.ignore_patterns("report"))
    out = ("--out", str(tmp_path))
    missing = command("report", "--study", "planted", "--compare", str(tmp_path / "plantd"), *out)
    assert (missing.code, missing.out) == (2, "")
    assert missing.err.endswith(f"plantd: no study has been run here; no other study in {tmp_path}\n")
    shutil.copytree(tmp_path / "planted", tmp_path / "second")
    misspelt = command("report", "--study", "planted", "--compare", str(tmp_path / "secnd"), *out)
    assert misspelt.err.endswith("secnd: no study has been run here; allowed: second; nearest: second\n")
    untrained = command("report", "--study", "planted", "--compare", str(tmp_path / "impacts"), *out)
    assert untrained.err.endswith(f"run it first: --study impacts --out {tmp_path}\n")
    assert untrained.err.count("\n") == untrained.code - 1 == 1
    unknown = command("report", "--study", "plantd", *out)
    assert unknown.code == 2
    assert unknown.err.rstrip().endswith("nearest: planted")


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
    assert "1 of 1 trial has a result" in page.text
    assert "nan" not in page.text.lower().split()


def test_a_study_without_norm_depth_and_batch_size(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=2, weight_decay=[0, 1e-4], train_samples=[None, 512]))
    assert write_report(folder).exists()


def test_only_the_questions_asked(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=1, questions=("impacts",), norm=["sn", "bn"]))
    assert list(Report(folder).answers) == ["impacts"]


def test_many_norms_and_a_batch_of_one(tmp_path: Path) -> None:
    norms = ["sn", "ssn", "bn", "gn", "sn-uniform", "sn[in,ln]"]
    folder = write_study(tmp_path, build_study(replicates=2, norm=norms, batch_size=[1, 16]))
    assert _Page(write_report(folder).read_text(encoding="utf-8")).count("figure") > 12


def test_nasty_text_is_escaped(tmp_path: Path) -> None:
    study = build_study(replicates=2, norm=["sn", "bn"]).model_copy(update={"title": NASTY, "question": NASTY})
    folder = write_study(tmp_path, study, only=lambda trial: trial.replicate == 0)
    for trial in plan_trials(study)[2:]:
        write_json(folder.trial(trial.trial_id, 1).state, {"state": "failed", "attempt": 1, "reason": NASTY})
    html = write_report(folder).read_text(encoding="utf-8")
    page = _Page(html)
    assert "alert('x')" not in html
    assert page.text.count("alert('x')") == 7  # title twice, question, two reasons in both tables
    assert page.count("script") == 3 + page.count("figure")  # the data of a figure are a script each


def test_every_trial_diverged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_study(replicates=2, norm=["sn", "bn"]), Truth(), diverged=lambda trial: True)
    path = write_report(folder)
    assert "4 diverged" in _Page(path.read_text(encoding="utf-8")).text
    _strict_json(path.parent / "answers.json")
