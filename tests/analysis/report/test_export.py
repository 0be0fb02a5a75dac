"""Figures as files for a paper: what is in them, and what happens where no browser is."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from study.analysis.questions.answers import Effect
from study.analysis.report.effect_figures import RankingColumn, draw_factor_ranking, draw_forest
from study.analysis.report.export import (
    NO_BROWSER,
    ONE_COLUMN,
    TWO_COLUMNS,
    build_paper_figure,
    export_figures,
    remove_random_parts,
)
from study.analysis.report.tables import format_csv
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures

RANKING = [
    RankingColumn(title="Jensen-Shannon", measures={"all weights": "effect"}, margin=0.05),
    RankingColumn(title="Other", measures={"all weights": "effect_mean"}, margin=0.05),
]


def _effect(measure: str) -> Effect:
    estimate = Estimate(value=2.0, low=1.5, high=3.0, n=4)
    return Effect(
        measure=build_measures()[measure], comparison="depth", estimate=estimate, n_pairs=4, n_pairs_planned=4,
        trials=(0, 1),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _with_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROWSER_PATH")  # which other tests do without


@pytest.fixture
def drawn() -> list[go.Figure]:
    """A figure of one column of panels, and one of two."""
    return [draw_forest([_effect("val_accuracy")], "Gain & loss", "Small."),
            draw_factor_ranking([_effect("effect"), _effect("effect_mean")], RANKING, "Ranking", "Large.")]  # fmt: skip


def test_the_paper_has_neither_title_nor_slider(drawn: list[go.Figure]) -> None:
    figure = drawn[0].update_layout(sliders=[{"steps": []}])
    paper = build_paper_figure(figure)
    assert paper.layout.title.text is None
    assert not paper.layout.sliders
    assert figure.layout.title.text == "Gain & loss"  # the page's own figure stays as it was


def test_the_width_follows_the_panels(drawn: list[go.Figure]) -> None:
    assert [build_paper_figure(figure).layout.width for figure in drawn] == [ONE_COLUMN, TWO_COLUMNS]


def test_a_date_of_the_same_length_takes_the_place_of_now() -> None:
    image = b"<< /CreationDate (D:20261123015500+00'00') /ModDate (D:20261123015501+00'00') >>"
    assert (
        remove_random_parts(image)
        == b"<< /CreationDate (D:20000101000000+00'00') /ModDate (D:20000101000000+00'00') >>"
    )


def test_without_a_browser_it_says_what_is_missing(
    drawn: list[go.Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    said = export_figures(drawn, tmp_path)
    assert said == NO_BROWSER
    assert "BROWSER_PATH" in said
    assert list(tmp_path.iterdir()) == []


def test_a_browser_that_fails_fails_no_report(
    drawn: list[go.Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    said = export_figures(drawn, tmp_path / "figures")
    assert isinstance(said, str)
    assert said.startswith("no figures as SVG and PDF: the browser failed")
    assert "\n" not in said
    assert not (tmp_path / "figures").exists()


def test_images_are_for_a_paper_and_the_same_each_time(drawn: list[go.Figure], tmp_path: Path) -> None:
    (tmp_path / "03-older.svg").touch()
    paths = export_figures([*drawn, drawn[0]], tmp_path)  # in one call: a browser takes seconds to start
    if paths == NO_BROWSER:
        pytest.skip(NO_BROWSER)
    names = [f"{name}.{kind}" for name in ("01-gain-loss", "02-ranking", "03-gain-loss") for kind in ("svg", "pdf")]
    assert paths == [tmp_path / name for name in names]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "captions.txt"}
    assert "Gain & loss. Small." in (tmp_path / "captions.txt").read_text()
    svg, pdf, *_, svg_again, pdf_again = ((tmp_path / name).read_bytes() for name in names)
    assert (svg, pdf) == (svg_again, pdf_again)
    assert "depth" in re.sub(r"<[^>]*>", " ", svg.decode())
    assert b"Gain" not in svg
    assert f'width="{ONE_COLUMN}"'.encode() in svg
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf or b"/FontFile3" in pdf  # fonts lie inside


def test_nothing_drawn_leaves_no_image(tmp_path: Path) -> None:
    (tmp_path / "01-older.pdf").touch()
    assert export_figures([], tmp_path) == []
    assert list(tmp_path.glob("*.pdf")) == []


def test_a_spreadsheet_runs_no_text_of_a_table() -> None:
    texts = ["=1+1", "+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "-1.5", "+3", "-1e-3", "sn", "", "a=b"]
    table = pd.DataFrame({"=text": texts, "number": [-1.5] * len(texts)})
    found = pd.read_csv(io.StringIO(format_csv(table)), dtype=str, keep_default_na=False, na_filter=False)
    assert found["'=text"].tolist() == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert "\r" not in format_csv(pd.DataFrame({"text": ["a\r=1"]}))
    assert set(found["number"]) == {"-1.5"}
