"""What a study has suffered: counted against an undisturbed run of the same study, from the records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from study.record.io import read_attempts
from study.record.layout import FINISHED, StudyFolder, TrialFolder


@dataclass(kw_only=True)
class Damage:
    """Of a study's trials, by key: those without a result, those trained twice, and how many numbers differ in each.

    report: whether answers.json differs. untold: trials that Optuna's storage misses, or has more than once.
    """

    lost: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    differing: dict[str, int] = field(default_factory=dict)
    report: bool = False
    pending: int = 0


def compare(whole: StudyFolder, disturbed: StudyFolder, storage: str) -> Damage:
    """What differs from the undisturbed study, which must be complete. `storage` is the URL of the disturbed one's."""
    damage = Damage()
    for reference in whole.trials():
        record = disturbed.trial(reference.trial_id, reference.replicate)
        if record.read_result() is None or record.damaged_files():
            damage.lost.add(record.key)
        elif different := count_differences(reference, record):
            damage.differing[record.key] = different
        if trained_twice(read_attempts(record.attempts_log)):
            damage.twice.add(record.key)
    answers = [study.report / "answers.json" for study in (whole, disturbed)]
    damage.report = not answers[1].exists() or answers[0].read_bytes() != answers[1].read_bytes()
    told = told_trials(disturbed.path.name, storage)
    damage.pending = sum(abs(1 - told[record.key]) for record in whole.trials())
    return damage


def told_trials(study: str, storage: str) -> Counter[str]:
    """Trials by key, as often as Optuna has them; none where its storage cannot be read."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    except Exception:  # a storage may be broken in any way, and is then of no use
        return Counter()
    return Counter(trial.user_attrs.get("key", "") for trial in trials)


def count_differences(one: TrialFolder, other: TrialFolder) -> int:
    """The status, metrics, lines of metrics.jsonl and switch_weights.parquet (as one) that differ, bit for bit."""
    ours, theirs = (_values(record) for record in (one, other))
    differing: int = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    lines = (record.metrics.read_bytes().split(b"\n") for record in (one, other))
    differing += sum(a != b for a, b in zip_longest(*lines))
    return differing + (one.switch_weights.read_bytes() != other.switch_weights.read_bytes())


def trained_twice(lines: Sequence[dict[str, Any]]) -> bool:
    """Whether attempts of a trial overlapped in time, or trained steps when there was a result.

    `lines`, as in attempts.jsonl, have a `pid` where an attempt starts and `how` where it ends. One that was killed has
    no end; that it went on beside a later one shows when it ends after that one's start.
    """
    started: dict[int, int] = {}
    finished = 0  # steps of the result there is
    for line in sorted(lines, key=lambda line: float(line["time"])):
        attempt, step = int(line["attempt"]), int(line["step"] or 0)
        if "pid" in line:
            if attempt in started:
                return True
            started[attempt] = step
        else:
            if attempt < max(started, default=0) or (finished and step > started.get(attempt, 0)):
                return True
            finished = max(finished, step if line["how"] in FINISHED else 0)
    return False


def _values(record: TrialFolder) -> dict[str, Any]:
    result = record.read_result()
    assert result is not None, record.path
    return {"status": result["status"], **result["metrics"]}
