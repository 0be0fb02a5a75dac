"""Synthetic records: those in memory equal those on disk, and both follow the truth."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.records import StudyRecords, load_study_records
from study.bench.synthetic_records import SyntheticStudy, Truth, write_study
from study.config.schema import StudyConfig
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from tests.analysis.conftest import build_study

TRUTH = Truth(
    bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16),
    layer_logits=lambda trial, layers: np.arange(len(layers))[:, None] * [0.05, -0.05],
    bn_logit_of_heads=2.0,
    shared={(): 0.01, ("norm",): 0.01},
    shared_logits={("depth",): 0.1},
    diverges=lambda trial, accuracy: 0.2,
    fails=lambda trial, accuracy: 0.1,
    seed=3,
)
STUDIES: dict[str, dict[str, Any]] = {
    "norms": {"norm": ["sn", "bn"], "depth": [8, 14], "batch_size": [1, 16]},
    "tasks": {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]},
}


def _hash(trial: PlannedTrial) -> int:
    return zlib.crc32(trial.key.encode()) % 7


PART = {
    "only": lambda trial: _hash(trial) > 1,
    "failed": lambda trial: _hash(trial) == 1,
    "diverged": lambda trial: _hash(trial) == 2,
}


def _on_disk(folder: Path, study: StudyConfig, **filters: Any) -> StudyRecords:
    write_study(StudyFolder(folder / study.name), study, TRUTH, **filters)
    return load_study_records(StudyFolder(folder / study.name))


@pytest.mark.parametrize("factors", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("filters", [{}, PART], ids=["finished", "in part"])
def test_records_in_memory_equal_those_on_disk(tmp_path: Path, factors: dict[str, Any], filters: Any) -> None:
    study = build_study(replicates=3, **factors)
    disk, memory = _on_disk(tmp_path, study, **filters), SyntheticStudy(study).draw_records(TRUTH, **filters)
    assert (disk.study, disk.provenance, disk.unplanned) == (memory.study, memory.provenance, memory.unplanned)
    for name in ("trials", "switch", "heads", "curves"):
        pd.testing.assert_frame_equal(getattr(memory, name), getattr(disk, name), check_exact=True)
    by = ["key", "epoch", "scope", "statistic", "normalizer"]  # the rows of means have no defined order
    means, expected = (each.switch_epochs.sort_values(by, ignore_index=True) for each in (memory, disk))
    pd.testing.assert_frame_equal(means, expected, rtol=1e-12)
    weights, expected = (each.weights.to_pandas() for each in (memory, disk))
    pd.testing.assert_frame_equal(weights, expected, check_exact=True, check_categorical=False)


def test_draws_of_a_study_are_independent() -> None:
    study = SyntheticStudy(build_study(replicates=2, norm=["sn", "bn"]))
    first, other = study.draw_records(Truth()), study.draw_records(Truth(seed=1))
    pd.testing.assert_frame_equal(first.trials, study.draw_records(Truth()).trials)
    assert not first.trials["val_accuracy"].eq(other.trials["val_accuracy"]).any()
    assert not (first.switch["weight"] == other.switch["weight"]).all()


def test_trials_share_the_noise_that_the_truth_names() -> None:
    truth = Truth(accuracy_noise=0.0, shared={("norm",): 0.01})
    study = SyntheticStudy(build_study(replicates=3, norm=["sn", "bn"], batch_size=[2, 16]))
    trials = study.draw_records(truth).trials
    assert trials.groupby(["norm", "replicate"])["val_accuracy"].nunique().eq(1).all()
    assert trials["val_accuracy"].nunique() == 6


def test_a_replicate_can_repeat_another() -> None:
    study = SyntheticStudy(build_study(replicates=3, norm=["sn", "bn"]))
    records = study.draw_records(Truth(repeats={2: 0}))
    scores = records.trials.pivot(index="norm", columns="replicate", values="val_accuracy")
    assert scores[2].eq(scores[0]).all()
    assert scores[1].ne(scores[0]).all()
    rows = records.weights.to_pandas().groupby("replicate")
    weights = {replicate: table["weight"].tolist() for replicate, table in rows}
    assert weights[2] == weights[0] != weights[1]


def test_one_hot_weights_follow_the_largest_logit() -> None:
    study = SyntheticStudy(build_study(replicates=2, norm=["sn"]))
    switch = study.draw_records(Truth(bn_logit=lambda trial: 9.0, one_hot=True)).switch
    assert switch.groupby("normalizer")["weight"].agg(["min", "max"]).to_numpy().tolist() == [[1, 1], [0, 0], [0, 0]]
