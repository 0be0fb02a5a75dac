"""The packed records of docs/results give the answers and the tables of results.md, byte for byte."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from study.analysis.report.report import write_report
from study.record.layout import StudyFolder
from tests.conftest import ROOT

PAGE, PACKED = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
STUDIES = [archive.name.removesuffix(".tar.xz") for archive in sorted(PACKED.glob("*.tar.xz"))]


@pytest.mark.parametrize("study", STUDIES)
def test_records_give_the_same_answers(study: str, tmp_path: Path) -> None:
    shutil.unpack_archive(PACKED / f"{study}.tar.xz", tmp_path)
    folder = StudyFolder(tmp_path / study)
    write_report(folder)
    assert (folder.report / "answers.json").read_bytes() == (PACKED / f"{study}.json").read_bytes()


def test_packing_a_study_keeps_all_that_its_report_needs(tmp_path: Path) -> None:
    """The committed small study: packed twice to the same bytes, unpacked to the same answers, and shown in a table."""
    shutil.unpack_archive(ROOT / "tests" / "analysis" / "small_study" / "records.zip", tmp_path / "runs")
    results = runpy.run_path(str(ROOT / "docs" / "results.py"))
    packed = results["pack"].__globals__["PACKED"] = tmp_path / "packed"
    archives = []
    for _ in range(2):
        results["pack"](tmp_path / "runs" / "small", "packed")
        archives.append((packed / "packed.tar.xz").read_bytes())
    assert archives[0] == archives[1]
    shutil.unpack_archive(packed / "packed.tar.xz", tmp_path / "unpacked")
    folder = StudyFolder(tmp_path / "unpacked" / "packed")
    write_report(folder)
    assert (folder.report / "answers.json").read_bytes() == (packed / "packed.json").read_bytes()
    assert "| displacement of the choice | batch_size | 0.241 (0.226 to 0.256) | 4 |" in results["_effects_table"](
        "packed"
    )


def test_tables_are_up_to_date(tmp_path: Path) -> None:
    page = Path(shutil.copy(PAGE, tmp_path))
    runpy.run_path(str(ROOT / "docs" / "results.py"))["write_tables"](page)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
