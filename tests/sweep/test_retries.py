"""How often a trial that ended without a result is tried again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from study.record.layout import TrialFolder
from study.sweep.retries import CANCELLED, RetryPolicy
from tests.sweep.endings import fail, finish, interrupt, kill


@pytest.mark.parametrize(
    ("endings", "steps", "requeues"),
    [
        ([fail, fail, fail], ["retry", "retry", "give up"], 2),
        ([kill, kill, kill], ["retry", "retry", "give up"], 2),
        ([interrupt, interrupt, interrupt], ["retry", "retry", "give up"], 2),
        ([interrupt, kill, interrupt, fail, finish], ["retry", "retry", "retry", "retry", "done"], 2),
        ([interrupt], ["give up"], 0),
    ],
)
def test_failures_and_interruptions_have_separate_limits(
    tmp_path: Path, endings: Sequence[Callable[[TrialFolder], str]], steps: list[str], requeues: int
) -> None:
    retries, record = RetryPolicy(max_attempts=3, requeues=requeues), TrialFolder(tmp_path / "cell" / "r0")
    assert [retries.next_step(record, end(record))[0] for end in endings] == steps


def test_a_trial_whose_job_was_cancelled_is_not_tried_again_unless_it_has_a_result(tmp_path: Path) -> None:
    retries, record = RetryPolicy(max_attempts=3, requeues=2), TrialFolder(tmp_path / "cell" / "r0")
    interrupt(record)
    assert retries.next_step(record, f"{CANCELLED} with Slurm job 7")[0] == "cancelled"
    finish(record)
    assert retries.next_step(record, f"{CANCELLED} with Slurm job 7")[0] == "done"


def test_a_trial_whose_lock_another_process_holds_is_neither_retried_nor_given_up(tmp_path: Path) -> None:
    record = TrialFolder(tmp_path / "cell" / "r0")
    kill(record)
    with record.lock():
        assert RetryPolicy(max_attempts=1, requeues=0).next_step(record, "ended") == ("elsewhere", "")
