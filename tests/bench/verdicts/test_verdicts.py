"""The benchmark of verdicts: records in memory are those on disk, and what is counted is what was asked."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.bench.synthetic_records import SyntheticStudy, Truth, synthetic_records, write_study
from study.bench.verdicts.campaign import Counts, measure, scenarios, true_values
from study.config.schema import StudyConfig
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from tests.analysis.conftest import build_study

TRUTH = Truth(
    bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16),
    layer_logits=lambda trial, depths: depths[:, None] * [0.5, -0.5],
    bn_logit_of_heads=2.0,
    shared={(): 0.01, ("norm",): 0.01},
    shared_logits={("depth",): 0.1},
    diverges=lambda trial, accuracy: 0.2,
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


def _on_disk(folder: Path, study: StudyConfig, **which: Any) -> StudyRecords:
    write_study(StudyFolder(folder / study.name), study, TRUTH, **which)
    return load_study_records(StudyFolder(folder / study.name))


@pytest.mark.parametrize("factors", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("which", [{}, PART], ids=["finished", "in part"])
def test_records_in_memory_are_those_on_disk(tmp_path: Path, factors: dict[str, Any], which: Any) -> None:
    study = build_study(replicates=3, **factors)
    disk, memory = _on_disk(tmp_path, study, **which), synthetic_records(study, TRUTH, **which)
    assert (disk.study, disk.provenance, disk.unplanned) == (memory.study, memory.provenance, memory.unplanned)
    for name in ("trials", "switch", "heads", "curves"):
        pd.testing.assert_frame_equal(getattr(memory, name), getattr(disk, name), check_exact=True)
    by = ["key", "epoch", "scope", "statistic", "normalizer"]  # rows of means have no order of their own
    means, expected = (each.switch_epochs.sort_values(by, ignore_index=True) for each in (memory, disk))
    pd.testing.assert_frame_equal(means, expected, rtol=1e-12)
    weights, expected = (each.weights.to_pandas() for each in (memory, disk))
    pd.testing.assert_frame_equal(weights, expected, check_exact=True, check_categorical=False)


def test_worlds_share_nothing_but_the_study() -> None:
    study = SyntheticStudy(build_study(replicates=2, norm=["sn", "bn"]))
    first, other = study.records(Truth()), study.records(Truth(seed=1))
    pd.testing.assert_frame_equal(first.trials, study.records(Truth()).trials)
    assert not first.trials["val_accuracy"].eq(other.trials["val_accuracy"]).any()
    assert not (first.switch["weight"] == other.switch["weight"]).all()


def test_replicates_share_what_the_truth_says() -> None:
    truth = Truth(accuracy_noise=0.0, shared={("norm",): 0.01})
    trials = synthetic_records(build_study(replicates=3, norm=["sn", "bn"], batch_size=[2, 16]), truth).trials
    assert trials.groupby(["norm", "replicate"])["val_accuracy"].nunique().eq(1).all()
    assert trials["val_accuracy"].nunique() == 6


def test_a_tally_counts_sides_and_false_alarms() -> None:
    def effect(comparison: str, low: float, high: float, p_value: float | None) -> Effect:
        return Effect(
            measure=build_measures()["val_accuracy"], comparison=comparison, n_pairs=1, n_pairs_planned=1, p_value=p_value,
            estimate=Estimate(value=(low + high) / 2, low=low, high=high, n=3), bootstrap=(low, high),
        )  # fmt: skip

    tally = Counts()
    for p_value in (0.01, 0.2):
        effects = [effect("sn - bn", -0.1, 0.1, p_value), effect("sn - gn", 0.1, 0.2, 0.001)]
        answer = Answer(title="", verdict="supported", answer="", rule="", effects=effects, n_done=1, n_planned=1,
                        needs=[])  # fmt: skip
        tally.add(answer, {("val_accuracy", "sn - bn"): 0.0, ("val_accuracy", "sn - gn"): 0.05}, ["sn - bn"])
    assert (tally.draws, tally.verdicts, tally.alarms) == (2, {"supported": 2}, 1)
    assert tally.sides == tally.bootstrap
    assert tally.sides == {("val_accuracy", "sn - bn"): {"holds": 2}, ("val_accuracy", "sn - gn"): {"above": 2}}


def test_many_replicates_say_what_an_interval_should_hold() -> None:
    scenario = next(scenario for scenario in scenarios() if scenario.name == "half the claim")
    truths = true_values(scenario, 8)
    assert truths["effect", "depth"] == truths["effect", "initialization"] == 1.0
    assert truths["effect", "batch_size"] > 2


def test_every_world_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [scenario for scenario in scenarios() if scenario.name in ("null", "none moves", "neither moves")]
    monkeypatch.setattr("study.bench.verdicts.campaign.scenarios", lambda: some)
    rows = measure(quick=True, threads=None, device="cpu").rows
    assert [row["world"] for row in rows] == ["null", "none moves", "neither moves"]
    for row in rows:
        assert row["supported"] + row["not supported"] + row["not enough evidence"] == pytest.approx(1)
