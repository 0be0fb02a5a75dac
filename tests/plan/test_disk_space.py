"""The warning about a full disk."""

from __future__ import annotations

from pathlib import Path

from study.plan.disk_space import check_disk_space
from study.record.layout import StudyFolder


def test_a_study_that_does_not_fit_on_its_disk_gets_a_warning(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "not" / "there")
    free, warning = check_disk_space(1e18, folder)
    assert f"the disk of {tmp_path} has" in warning
    assert "needs about 1e+06 TB" in warning
    assert check_disk_space(free / 2, folder)[1] == ""
