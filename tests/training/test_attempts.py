"""What the attempts of a trial leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.record.layout import TrialFolder
from study.training.attempts import sum_attempt_seconds
from study.training.trial import run_job
from tests.training.trials import job, smoke_trial, train_and_die_after

TIMES = {
    "none yet": ([], 0),
    "one runs": ([(1, 100.0, None)], 0),
    "two ended": ([(1, 100.0, None), (1, 103.0, "failed"), (2, 900.0, None), (2, 904.5, "interrupted")], 7.5),
    "the first was killed": ([(1, 100.0, None), (2, 900.0, None), (2, 904.0, "failed")], 4),
    "the second ended before it started to train": ([(1, 100.0, None), (2, 900.0, "failed")], 0),
    "the clock was set back": ([(1, 100.0, None), (1, 50.0, "failed")], 0),
    "a time that is none": ([(1, 100.0, None), (1, "soon", "failed")], 0),
}


@pytest.mark.parametrize(("lines", "seconds"), TIMES.values(), ids=TIMES)
def test_attempts_are_summed_as_far_as_their_ends_are_known(
    lines: list[tuple[int, object, str | None]], seconds: float, tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path)
    rows = [{"attempt": n, "time": time} | ({"how": how} if how else {}) for n, time, how in lines]
    folder.attempts_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sum_attempt_seconds(folder) == seconds


@pytest.mark.parametrize(("trials", "seconds"), [(1, 80), (8, 10), (0, 0), ("eight", 0)])
def test_of_an_attempt_with_other_trials_in_its_process_a_share_counts(
    trials: object, seconds: float, tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path)
    rows = [{"attempt": 1, "time": 100.0, "trials": trials}, {"attempt": 1, "time": 180.0, "how": "interrupted"}]
    folder.attempts_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sum_attempt_seconds(folder) == seconds


def test_the_seconds_of_a_resumed_trial_are_those_of_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(smoke_trial("epochs=2"), tmp_path / "t" / "r0")
    folder = TrialFolder(work.folder)
    train_and_die_after(monkeypatch, work, 1)
    start = json.loads(folder.attempts_log.read_text())
    with folder.attempts_log.open("a") as file:  # as if a signal had ended it after an hour
        file.write(json.dumps({"attempt": 1, "time": start["time"] + 3600, "how": "interrupted"}) + "\n")
    run_job(work)
    result = folder.read_result()
    assert result is not None
    assert 3600 < result["seconds"] < 3700
