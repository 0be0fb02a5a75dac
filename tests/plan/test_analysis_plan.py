"""The plan of the analysis: what it holds, its hash, and what a damaged one in study.yaml gives."""

from __future__ import annotations

from typing import Any

import pytest

from study.config.errors import UserError
from study.plan.analysis_plan import (
    amend_plan,
    find_changes,
    format_changes,
    hash_plan,
    parse_plan_record,
    record_plan,
    resolve_analysis_plan,
)
from study.plan.loading import load_study


def _plan(*overrides: str) -> dict[str, Any]:
    return resolve_analysis_plan(load_study("depth_vs_batch", "laptop", ["replicates=4", *overrides]))


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("analysis.metric=test_accuracy", {"metric"}),
        ("confidence=0.9", {"confidence"}),
        ("margins.accuracy=0.01", {"margins"}),
        ("questions=[useful]", {"questions"}),
        ("tuned=[depth]", {"tuned"}),
        ("replicates=9", {"replicates"}),
        ("batch_size=[2, 16, 32]", {"factors", "comparisons"}),
        ("analysis.metric=val_accuracy", set()),  # the default
        ("run.threads=4", set()),
        ("title=another", set()),
    ],
)
def test_the_plan_holds_what_decides_answers_and_nothing_else(override: str, changed: set[str]) -> None:
    before, now = _plan(), _plan(override)
    assert set(find_changes(before, now)) == changed
    assert (hash_plan(before) == hash_plan(now)) == (not changed)


def test_ordered_factors_are_compared_by_their_ends() -> None:
    plan = _plan("batch_size=[16, 2, 4]", "norm=[sn, bn, in]")
    assert plan["comparisons"]["batch_size"] == "2 with 16"
    assert plan["comparisons"]["norm"] == "every pair of levels"


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    plan = _plan()
    assert hash_plan(dict(reversed(plan.items()))) == hash_plan(plan)
    assert len(hash_plan(plan)) == 64


def test_a_record_is_read_back_as_it_was_written() -> None:
    record = amend_plan(record_plan(_plan(), "2026-01-01", 0), _plan("replicates=9"), "2026-01-02", 12)
    assert parse_plan_record(record.to_dict(), "study.yaml") == record
    assert record.latest == _plan("replicates=9")


def test_each_plan_is_amended_once() -> None:
    record = record_plan(_plan(), "2026-01-01", 0)
    assert amend_plan(record, _plan(), "2026-01-02", 3) is record
    once = amend_plan(record, _plan("replicates=9"), "2026-01-02", 3)
    assert amend_plan(once, _plan("replicates=9"), "2026-01-03", 5) is once
    back = amend_plan(once, _plan(), "2026-01-04", 5)
    assert [dict(each.changes) for each in back.amendments] == [{"replicates": (4, 9)}, {"replicates": (9, 4)}]
    assert back.plan == _plan()
    assert back.latest == _plan()


@pytest.mark.parametrize(
    ("before", "now", "results", "adds"),
    [(4, 9, 12, True), (4, 9, 0, False), (9, 4, 12, True)],
)
def test_a_change_of_the_runs_counts_where_results_existed(before: int, now: int, results: int, adds: bool) -> None:
    plans = [_plan(f"replicates={number}") for number in (before, now)]
    record = amend_plan(record_plan(plans[0], "2026-01-01", 0), plans[1], "2026-01-02", results)
    assert record.amendments[0].changes_runs is adds


def test_changes_are_named_by_their_parts() -> None:
    changes = find_changes(_plan(), _plan("margins.accuracy=0.01", "replicates=9"))
    assert format_changes(changes) == "margins.accuracy from 0.005 to 0.01, replicates from 4 to 9"


def test_a_file_of_an_older_version_has_no_plan() -> None:
    assert parse_plan_record({"study": {}}, "study.yaml") is None


GOOD = record_plan(_plan(), "2026-01-01", 0).to_dict()
AMENDMENT = {"date": "2026-01-02", "changes": {"replicates": [4, 9]}, "results": 3}


def _with(**changed: Any) -> dict[str, Any]:
    return {"analysis_plan": {**GOOD["analysis_plan"], **changed}}


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"analysis_plan": None}, "analysis_plan"),
        ({"analysis_plan": [1]}, "analysis_plan"),
        ({"amendments": []}, "analysis_plan"),
        (_with(plan=3), "analysis_plan.plan"),
        (_with(plan={1: 2}), "analysis_plan.plan"),
        (_with(plan={"replicates": "many"}), "analysis_plan.plan.replicates"),
        (_with(plan={"replicates": 3}), "analysis_plan.hash"),
        (_with(hash="abc"), "analysis_plan.hash"),
        (_with(created=None), "analysis_plan.created"),
        (_with(results=-1), "analysis_plan.results"),
        (_with(results=True), "analysis_plan.results"),
        ({**GOOD, "amendments": {}}, "amendments"),
        ({**GOOD, "amendments": [3]}, "amendments[0]"),
        ({**GOOD, "amendments": [AMENDMENT, {**AMENDMENT, "changes": [1]}]}, "amendments[1].changes"),
        ({**GOOD, "amendments": [{**AMENDMENT, "changes": {"metric": "x"}}]}, "amendments[0].changes.metric"),
        ({**GOOD, "amendments": [{**AMENDMENT, "changes": {"replicates": [4, "x"]}}]}, "amendments[0].changes.repl"),
        ({**GOOD, "amendments": [{**AMENDMENT, "results": "x"}]}, "amendments[0].results"),
    ],
)
def test_a_damaged_section_is_one_line(content: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        parse_plan_record(content, "runs/s/study.yaml")
    assert str(error.value).startswith(f"runs/s/study.yaml: {where}")
    assert "\n" not in str(error.value)
    assert "damaged" in str(error.value)
