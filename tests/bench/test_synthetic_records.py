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
from study.bench.synthetic_records.contents import build_norm_layers
from study.config.schema import HEADS, SeedsConfig, StudyConfig
from study.config.seeds import SeedRole
from study.models import build_network, trace_geometry
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from tests.analysis.conftest import build_study
from tests.models.samples import build_config

TRUTH = Truth(
    bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16),
    layer_logits=lambda trial, layers: np.outer([layer.depth_fraction for layer in layers], [0.5, -0.5]),
    bn_logit_of_heads=2.0,
    shared={(): 0.01, ("norm",): 0.01},
    shared_logits={("depth",): 0.1},
    diverges=lambda trial, accuracy: 0.2,
    fails=lambda trial, accuracy: 0.1,
    seed=3,
)
STUDIES: dict[str, tuple[dict[str, Any], list[SeedRole]]] = {  # factors, and the seeds that are varied apart
    "norms": ({"norm": ["sn", "bn"], "depth": [8, 14], "batch_size": [1, 16]}, []),
    "tasks": ({"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}, []),
    "seeds apart": ({"norm": ["sn", "bn"]}, ["init", "data"]),
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


@pytest.mark.parametrize(("factors", "seeds"), STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("filters", [{}, PART], ids=["finished", "in part"])
def test_records_in_memory_equal_those_on_disk(
    tmp_path: Path, factors: dict[str, Any], filters: Any, seeds: list[SeedRole]
) -> None:
    study = build_study(replicates=3, **factors).model_copy(update={"seeds": SeedsConfig(apart=seeds)})
    disk, memory = _on_disk(tmp_path, study, **filters), SyntheticStudy(study).draw_records(TRUTH, **filters)
    assert (disk.study, disk.provenance, disk.unplanned) == (memory.study, memory.provenance, memory.unplanned)
    assert len(memory.seed_runs) == len(memory.trials) // 3 * 2 * len(seeds)
    for name in ("trials", "seed_runs", "switch", "heads", "curves"):
        pd.testing.assert_frame_equal(getattr(memory, name), getattr(disk, name), check_exact=True)
    by = ["key", "epoch", "scope", "statistic", "normalizer"]  # the rows of means have no defined order
    means, expected = (each.switch_epochs.sort_values(by, ignore_index=True) for each in (memory, disk))
    pd.testing.assert_frame_equal(means, expected, rtol=1e-12)
    weights, expected = (each.weights.to_pandas() for each in (memory, disk))
    pd.testing.assert_frame_equal(weights, expected, check_exact=True, check_categorical=False)


@pytest.mark.parametrize("depth", [8, 14])
@pytest.mark.parametrize("head", [None, *(head for heads in HEADS.values() for head in heads)])
def test_layers_are_where_those_of_the_real_network_are(head: str | None, depth: int) -> None:
    config = build_config(head, depth=depth, norm="sn")
    real, simulated = trace_geometry(build_network(config, seed=0)), build_norm_layers(config)
    facts = [
        [(layer.layer_index, layer.depth_fraction, layer.stage, layer.place) for layer in layers
         if layer.role == "backbone"] for layers in (simulated, real)
    ]  # fmt: skip
    assert facts[0] == facts[1]
    heads = [(layer.role, layer.stage, layer.place, layer.layer) for layer in simulated if layer.role != "backbone"]
    assert set(heads) <= {(layer.role, layer.stage, layer.place, layer.layer) for layer in real}


def test_a_truth_may_follow_the_places_of_layers() -> None:
    logits = {"stem": -2.0, "norm1": 0.0, "norm2": 1.0, "shortcut": 3.0}
    truth = Truth(layer_logits=lambda trial, layers: np.array([[logits[each.place]] for each in layers]))
    records = SyntheticStudy(build_study(replicates=4, norm=["sn"], depth=[8, 14])).draw_records(truth)
    shares = records.switch.query("normalizer == 'bn'").groupby("place", observed=True)["weight"].mean()
    assert shares.sort_values().index.tolist() == list(logits)


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


def test_a_replicate_that_repeats_another_is_refused() -> None:
    study = SyntheticStudy(build_study(replicates=3, norm=["sn", "bn"]))
    records = study.draw_records(Truth(repeats={2: 0}))
    states = records.trials.pivot(index="norm", columns="replicate", values="state")
    assert states[2].eq("repeated").all()
    assert states[[0, 1]].eq("done").all(axis=None)
    assert records.trials["val_accuracy"][records.trials["replicate"].eq(2)].isna().all()
    assert set(records.weights["replicate"].to_pylist()) == {0, 1}


def test_one_hot_weights_follow_the_largest_logit() -> None:
    study = SyntheticStudy(build_study(replicates=2, norm=["sn"]))
    switch = study.draw_records(Truth(bn_logit=lambda trial: 9.0, one_hot=True)).switch
    assert switch.groupby("normalizer")["weight"].agg(["min", "max"]).to_numpy().tolist() == [[1, 1], [0, 0], [0, 0]]
