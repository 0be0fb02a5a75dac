from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from study.analysis.records import load_study_records
from study.analysis.trial_files import METRICS
from study.analysis.weight_tables import compute_epoch_means, join_weights, read_switch_weights, select_last_epochs
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from tests.analysis.conftest import GRID, Truth, build_study, write_study, write_trial


@pytest.fixture
def small() -> StudyConfig:
    return build_study(replicates=2, norm=["sn", "bn"], batch_size=[2, 16])


def _first(folder: StudyFolder, study: StudyConfig) -> TrialFolder:
    trial = plan_trials(study)[0]
    return folder.trial(trial.trial_id, trial.replicate)


def test_a_finished_study(planted: StudyFolder) -> None:
    records = load_study_records(planted)
    trials = records.trials
    assert (len(trials), len(records.done), records.n_finished) == (64, 64, 64)
    assert {*GRID, *METRICS, "key", "pool", "command", "statistics_batch", "parameters"} <= set(trials.columns)
    assert trials.loc[trials["batch_size"].eq(2), "statistics_batch"].eq(2).all()
    assert records.reference_norm == "sn"
    assert records.provenance["commit"] == "abc123"
    assert records.unplanned == ()


def test_switch_weights_are_those_of_the_last_epoch(planted: StudyFolder) -> None:
    records = load_study_records(planted)
    assert set(records.switch["epoch"]) == {4}
    assert records.switch["key"].nunique() == 32  # no rows for bn
    trial = records.switch[records.switch["key"].eq(records.switch["key"].iloc[0])]
    means = records.switch_epochs
    network = means[means["key"].eq(trial["key"].iloc[0]) & means["scope"].eq("network") & means["epoch"].eq(4)]
    expected = trial.groupby(["statistic", "normalizer"])["weight"].mean()
    found = network.set_index(["statistic", "normalizer"])["weight"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_dtype=False, rtol=1e-5)
    assert {"network", "stage 0", "stage 1"} <= set(means["scope"])


def test_a_trial_leads_to_its_run_on_wandb(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small)
    environments = [folder.trial(trial.trial_id, trial.replicate).environment for trial in plan_trials(small)]
    write_json(environments[1], {"wandb": {"mode": "online", "url": "https://wandb.ai/me/p/runs/x", "run": "x"}})
    write_json(environments[2], {"wandb": {"mode": "offline", "url": None, "run": "y"}})
    found = load_study_records(folder).trials["wandb"].tolist()
    assert found == [None, "https://wandb.ai/me/p/runs/x", *[None] * 6]


def test_no_trials_at_all(tmp_path: Path, small: StudyConfig) -> None:
    records = load_study_records(write_study(tmp_path, small, only=lambda trial: False))
    assert set(records.trials["state"]) == {"planned"}
    assert (len(records.trials), len(records.switch), len(records.curves)) == (8, 0, 0)


def test_a_part_of_a_study(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small, only=lambda trial: trial.config.norm == "sn" and trial.replicate == 0)
    failed = folder.trial(plan_trials(small)[-1].trial_id, 1)
    write_json(failed.state, {"state": "failed", "attempt": 3, "reason": "out of memory"})
    stale = folder.trial(plan_trials(small)[-2].trial_id, 1)
    write_json(stale.state, {"state": "running", "attempt": 1})
    trials = load_study_records(folder).trials
    assert trials["state"].value_counts().to_dict() == {"planned": 4, "done": 2, "failed": 1, "stale": 1}
    assert trials.loc[trials["state"].eq("failed"), "reason"].item() == "out of memory"


def test_null_metrics_are_nan(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small, diverged=lambda trial: trial.config.norm == "bn")
    trials = load_study_records(folder).trials
    diverged = trials[trials["state"].eq("diverged")]
    assert len(diverged) == 4
    assert diverged[list(METRICS)].isna().all(axis=None)
    assert diverged["reason"].eq("loss is nan at step 3").all()


def _truncate(record: TrialFolder) -> None:
    record.switch_weights.write_bytes(record.switch_weights.read_bytes()[:-100])


def _flip(record: TrialFolder) -> None:
    data = bytearray(record.metrics.read_bytes())
    data[10] ^= 1
    record.metrics.write_bytes(bytes(data))


def _break_result(record: TrialFolder) -> None:
    record.result.write_text('{"schema": 1, "status": "done"', encoding="utf-8")


def _damage_unlisted_file(record: TrialFolder) -> None:
    """A parquet file whose digest is not in result.json, and that is not a parquet file."""
    result = read_json(record.result)
    assert result is not None
    del result["files"]["switch_weights.parquet"]
    write_json(record.result, result)
    record.switch_weights.write_bytes(b"PAR1 not really")


def _misshape(record: TrialFolder) -> None:
    record.result.unlink()
    record.state.write_text('{"surprise": []}', encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "switch_weights.parquet"),
        (_flip, "metrics.jsonl"),
        (_break_result, "result.json"),
        (_damage_unlisted_file, "switch_weights.parquet: unreadable"),
        (_misshape, "state.json"),
    ],
)
def test_damage_is_counted_and_named(
    tmp_path: Path, small: StudyConfig, damage: Callable[[TrialFolder], None], named: str
) -> None:
    folder = write_study(tmp_path, small)
    damage(_first(folder, small))
    records = load_study_records(folder)
    damaged = records.trials[records.trials["state"].eq("damaged")]
    assert len(records.trials) == 8
    assert len(damaged) == 1
    assert named in damaged["reason"].item()
    assert damaged["key"].item() not in set(records.switch["key"])


def test_a_torn_metrics_file_of_a_running_trial(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small, only=lambda trial: False)
    record = _first(folder, small)
    write_json(record.state, {"state": "running", "attempt": 1})
    row = json.dumps({"schema": 1, "epoch": 1, "step": 3, "name": "val_accuracy", "value": 0.5})
    record.metrics.write_text(f'{row}\n{row.replace("0.5", "null")[:-1]}}}\n{{"epoch": 2, "na', encoding="utf-8")
    record.switch_weights.write_bytes(b"half")
    with record.lock():
        records = load_study_records(folder)
    assert records.trials["state"].value_counts()["running"] == 1
    assert np.isnan(records.curves["value"].item())


def test_trials_outside_the_plan_are_counted_apart(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small)
    other = plan_trials(build_study(replicates=1, norm=["gn"], batch_size=[2]))[0]
    write_trial(folder, other, Truth())
    records = load_study_records(folder)
    assert records.unplanned == (other.key,)
    assert other.key not in set(records.trials["key"])


def test_a_search_lists_what_is_on_disk(tmp_path: Path, small: StudyConfig) -> None:
    folder = write_study(tmp_path, small)
    search = {**small.model_dump(mode="json"), "search": {"sampler": "tpe", "n_trials": 7}}
    (tmp_path / "study.yaml").write_text(json.dumps({"study": search}), encoding="utf-8")
    _first(folder, small).trial.write_text("levels: [", encoding="utf-8")
    records = load_study_records(folder)
    assert (len(records.trials), records.n_planned) == (8, 14)
    assert records.trials["state"].value_counts().to_dict() == {"done": 7, "damaged": 1}
    assert records.levels("batch_size") == [2, 16]


@pytest.mark.parametrize("text", ["", "study: 3", "a: [", "study: {name: x}"])
def test_no_study(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"study\.yaml"):
        load_study_records(StudyFolder(tmp_path))
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"study\.yaml"):
        load_study_records(StudyFolder(tmp_path))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("weight", 0.9, "sum to 1"),
        ("normalizer", "xx", "normalizer: unknown: xx; allowed: in, ln, bn, gn"),
        ("statistic", "median", "unknown"),
    ],
)
def test_switch_weights_that_cannot_be(planted: StudyFolder, column: str, value: object, message: str) -> None:
    file = next(planted.path.glob("trials/sn-*/r0/switch_weights.parquet"))
    rows = pq.read_table(file).to_pandas()
    rows[column] = value
    sink = io.BytesIO()
    rows.to_parquet(sink)
    with pytest.raises(ValueError, match=message):
        read_switch_weights(io.BytesIO(sink.getvalue()))
    rows.drop(columns=column).to_parquet(sink := io.BytesIO())
    with pytest.raises(ValueError, match=f"lacks the columns {column}"):
        read_switch_weights(io.BytesIO(sink.getvalue()))


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_no_damage_of_a_table_of_switch_weights_is_noticed_late(planted: StudyFolder, damage: str) -> None:
    data = next(planted.path.glob("trials/sn-*/r0/switch_weights.parquet")).read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(200):
        spoiled, place = bytearray(data), int(rng.integers(len(data)))
        if damage == "cut":
            del spoiled[place:]
        else:
            spoiled[place] = rng.integers(256)
        try:
            table = join_weights([("key", read_switch_weights(io.BytesIO(spoiled)))])
        except ValueError:
            continue
        select_last_epochs(table)
        compute_epoch_means(table)


def test_switch_weights_without_a_value(planted: StudyFolder) -> None:
    rows = pq.read_table(next(planted.path.glob("trials/sn-*/r0/switch_weights.parquet"))).to_pandas()
    rows.loc[3, "weight"] = None
    rows.to_parquet(sink := io.BytesIO())
    with pytest.raises(ValueError, match="weight: has missing values"):
        read_switch_weights(io.BytesIO(sink.getvalue()))
