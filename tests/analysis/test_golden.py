"""A small real study, trained once and committed: what the page answers, against answers that were read by eye."""

from __future__ import annotations

import shutil
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from study.analysis.report.report import write_report
from study.record.layout import StudyFolder

HERE = Path(__file__).parent / "small_study"
RECORDS, ANSWERS = HERE / "records.zip", HERE / "answers.txt"
BLOCKS = {"p", "li", "td", "th", "caption", "summary", "h3", "span", "small"}


class _Answers(HTMLParser):
    """The text of a page's answers, one line per block: sentences, cells, badges."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.text, self.inside = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = self.inside or ("id", "answers") in attrs
        if tag in BLOCKS:
            self._end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS or tag == "section":
            self._end_line()
        self.inside = self.inside and tag != "section"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""

    def _end_line(self) -> None:
        self.lines += [" ".join(self.text.split())] if self.text.strip() else []
        self.text = ""


def say_answers(folder: StudyFolder) -> str:
    page = write_report(folder).read_text(encoding="utf-8")
    return "\n".join(_Answers(page).lines) + "\n"


def pack(study: Path) -> None:
    """Rewrites the fixture and its golden file from a finished study."""
    folder = StudyFolder(study)
    records = [
        file
        for trial in folder.trials()
        for file in (trial.trial, trial.result, trial.environment, trial.metrics, trial.switch_weights, trial.state)
    ]
    with zipfile.ZipFile(RECORDS, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in [folder.config, *records]:
            archive.write(file, Path("small") / file.relative_to(study))
    ANSWERS.write_text(say_answers(folder), encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    out = tmp_path_factory.mktemp("runs")
    shutil.unpack_archive(RECORDS, out)
    return StudyFolder(out / "small")


def test_the_answers_are_those_that_were_read(small: StudyFolder) -> None:
    assert say_answers(small) == ANSWERS.read_text(encoding="utf-8")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
