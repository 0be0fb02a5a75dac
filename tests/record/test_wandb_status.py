"""What the run of a trial shows of its record: tags, notes, status."""

from __future__ import annotations

from typing import Any

import pytest

from study.record.wandb_status import RunStatus, describe_end

LEVELS = {"norm": "sn"}


def result_of(status: str, reason: str | None = None) -> dict[str, Any]:
    return {"status": status, "reason": reason, "attempts": 2, "metrics": {"val_accuracy": 0.5}}


@pytest.mark.parametrize(
    ("result", "state", "tags", "note"),
    [
        (result_of("done"), {}, [], ""),
        (result_of("diverged", "loss is nan"), {}, ["diverged"], "attempt 2: diverged: loss is nan"),
        (result_of("pruned", "by the search"), {"state": "running"}, ["pruned"], "attempt 2: pruned: by the search"),
        (None, {"state": "failed", "attempt": 3, "reason": "no memory"}, ["failed"], "attempt 3: failed: no memory"),
        (None, {"state": "interrupted", "attempt": 1, "reason": "SIGTERM"}, ["preempted"],
         "attempt 1: preempted: SIGTERM"),
        (None, {"state": "running", "attempt": 1}, ["killed"],
         "attempt 1: killed: its process ended without giving a reason"),
    ],
)  # fmt: skip
def test_how_a_trial_has_ended_is_a_tag_and_a_note(
    result: dict[str, Any] | None, state: dict[str, Any], tags: list[str], note: str
) -> None:
    status = describe_end(result, state)
    assert status.update_tags((), LEVELS) == ["norm=sn", *tags]
    assert status.update_notes("") == note
    assert status.summary == {"status": status.status, **(result["metrics"] if result else {})}
    assert status.is_finished == (result is not None)
    stale = (["norm=sn", "failed", "mine", *tags], "attempt 1: failed: no memory")
    assert status.update_tags(stale[0], LEVELS) == ["norm=sn", *tags, "mine"]
    assert status.update_notes(stale[1]) == (note or f"attempt {status.attempt}: done")
    assert status.update_notes("see layer 3") == "see layer 3"


def test_what_would_be_too_long_is_cut() -> None:
    status = RunStatus(status="failed", attempt=1, reason="x" * 5000)
    assert max(map(len, status.update_tags((), {"norm": "n" * 100}))) == 64
    assert len(status.update_notes("")) == 1000
