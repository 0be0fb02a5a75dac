"""What the report calls damaged, and waits for, the next run trains again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.analysis.records import load_study_records
from study.bench.synthetic_records import Truth, write_study
from study.plan.loading import load_study
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder
from tests.sweep.test_driver import FakeExecutor, build_driver, done

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize(
    "edit", [{}, {"metrics": {"val_accuracy": 0.99}}, {"epochs": 1}], ids=["none", "score", "epochs"]
)
def test_a_result_that_the_report_refuses_is_trained_again(tmp_path: Path, edit: dict[str, Any]) -> None:
    study = load_study("depth_vs_batch", "smoke", ["replicates=2", "tracking.mode=disabled"])
    folder, executor = StudyFolder(tmp_path), FakeExecutor(done)
    write_study(folder, study, Truth())
    first = next(iter(folder.trials()))
    write_json(first.result, {**(read_json(first.result) or {}), **edit})
    waited_for = load_study_records(folder).trials.query("state == 'damaged'")["key"].tolist()
    assert waited_for == ([first.key] if edit else [])
    build_driver(study, tmp_path, executor).run()
    assert executor.started == waited_for
    assert len(list(first.path.glob("result.json.damaged-*"))) == len(waited_for)
