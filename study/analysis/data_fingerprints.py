"""Keeps trials of one study that were trained on different images apart, by the fingerprints in their records.

Records of older versions have none; their data are unknown, and are not compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from study.analysis.trial_files import TrialRecord
from study.config.errors import UserError
from study.config.wording import format_plural
from study.record.contents import FINISHED
from study.record.layout import StudyFolder, TrialFolder


def check_same_data(folder: StudyFolder, data: Mapping[str, str]) -> None:
    """Raises `UserError` if a trial has a result of other data, or a checkpoint that would resume on other data.

    data: fingerprints of the data sets that the study would be trained on now, by name.
    """
    others: dict[tuple[str, str], list[str]] = {}
    for trial in folder.trials():
        for name, fingerprint in trial.read_data().items():
            if fingerprint != data.get(name, fingerprint) and _is_trained(trial):
                others.setdefault((name, fingerprint), []).append(trial.key)
    for (name, fingerprint), keys in others.items():
        count = format_plural(len(keys), "trial was", "trials were")
        raise UserError(
            f"{folder.path}: {count} trained on other data, such as {keys[0]}: the fingerprint of {name} was "
            f"{fingerprint}, and is {data[name]} now; set run.data_root to the earlier data, or choose another folder "
            "with --out"
        )


def _is_trained(trial: TrialFolder) -> bool:
    return any(file.exists() for file in (trial.result, trial.last_checkpoint, trial.previous_checkpoint))


def mark_other_data(records: Sequence[TrialRecord]) -> None:
    """Has finished trials be `damaged` that were trained on other images of a data set than most of the trials."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    finished = [record for record in records if record.row["state"] in FINISHED]
    for record in finished:
        for name, fingerprint in record.data.items():
            counts[name][fingerprint] += 1
    for record in finished:
        for name, fingerprint in record.data.items():
            (usual, number), *_ = counts[name].most_common(1)
            if fingerprint != usual:
                record.mark_damaged(
                    f"trained on other data: the fingerprint of {name} is {fingerprint}, but {usual} in "
                    f"{format_plural(number, 'trial')}"
                )
