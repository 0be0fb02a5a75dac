"""Compares a disturbed study with an undisturbed run of the same study, from their records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from study.record.contents import FINISHED
from study.record.io import read_attempts
from study.record.layout import StudyFolder, TrialFolder


@dataclass(kw_only=True)
class StudyDifferences:
    """What differs from the undisturbed study. Trials are given by key.

    lost: trials without a complete result. run_twice: trials that were trained twice. differing: how many numbers
    differ, by trial. report_differs: whether answers.json differs. optuna_errors: trials that Optuna's storage does not
    have, and surplus copies of those that it has.
    """

    lost: set[str] = field(default_factory=set)
    run_twice: set[str] = field(default_factory=set)
    differing: dict[str, int] = field(default_factory=dict)
    report_differs: bool = False
    optuna_errors: int = 0


def compare_studies(reference: StudyFolder, disturbed: StudyFolder, storage: str) -> StudyDifferences:
    """Compares with a complete undisturbed study. `storage`: URL of the disturbed study's Optuna storage."""
    differences = StudyDifferences()
    for expected in reference.trials():
        record = disturbed.trial(expected.trial_id, expected.replicate)
        if record.read_result() is None or record.damaged_files():
            differences.lost.add(record.key)
        elif count := count_differences(expected, record):
            differences.differing[record.key] = count
        if was_trained_twice(read_attempts(record.attempts_log)):
            differences.run_twice.add(record.key)
    answers = [study.report / "answers.json" for study in (reference, disturbed)]
    differences.report_differs = not answers[1].exists() or answers[0].read_bytes() != answers[1].read_bytes()
    in_optuna = count_optuna_trials(disturbed.path.name, storage)
    differences.optuna_errors = sum(abs(1 - in_optuna[record.key]) for record in reference.trials())
    return differences


def count_optuna_trials(study: str, storage: str) -> Counter[str]:
    """How often Optuna's storage has each trial, by key; empty if the storage cannot be read."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    except Exception:  # a storage can be broken in many ways
        return Counter()
    return Counter(trial.user_attrs.get("key", "") for trial in trials)


def count_differences(one: TrialFolder, other: TrialFolder) -> int:
    """Counts what is not bit-equal: status, metrics, lines of metrics.jsonl, and switch_weights.parquet as a whole."""
    ours, theirs = (_read_values(record) for record in (one, other))
    differing: int = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    lines = (record.metrics.read_bytes().split(b"\n") for record in (one, other))
    differing += sum(a != b for a, b in zip_longest(*lines))
    return differing + (one.switch_weights.read_bytes() != other.switch_weights.read_bytes())


def was_trained_twice(attempts: Sequence[dict[str, Any]]) -> bool:
    """Whether attempts at a trial overlapped in time, or one trained steps after there was a result.

    `attempts`: lines of attempts.jsonl. A line with `pid` is the start of an attempt, one with `how` its end. An
    attempt that was killed has no end. If it went on nevertheless, it ends after the start of a later attempt.
    """
    start_steps: dict[int, int] = {}
    result_step = 0  # the step of the last result; 0: none
    for line in sorted(attempts, key=lambda line: float(line["time"])):
        attempt, step = int(line["attempt"]), int(line["step"] or 0)
        if "pid" in line:
            if attempt in start_steps:
                return True
            start_steps[attempt] = step
        else:
            if attempt < max(start_steps, default=0) or (result_step and step > start_steps.get(attempt, 0)):
                return True
            result_step = max(result_step, step if line["how"] in FINISHED else 0)
    return False


def _read_values(record: TrialFolder) -> dict[str, Any]:
    result = record.read_result()
    assert result is not None, record.path
    return {"status": result["status"], **result["metrics"]}
