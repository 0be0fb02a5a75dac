"""Seeds that are varied apart: their runs are compared with each other, and are no replicates."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from study.analysis.questions.impacts import answer_impacts
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.statistics.seed_sources import pool_deviations, pool_distances
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.plan.loading import study_from_dict
from study.plan.trials import plan_trials
from study.record.layout import StudyFolder
from tests.analysis.conftest import build_study, write_study


def with_seeds(study: StudyConfig, apart: list[str], **changes: object) -> StudyConfig:
    return study_from_dict({**study.model_dump(mode="json"), "seeds": {"apart": apart}, **changes}, "test")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> StudyRecords:
    study = with_seeds(build_study(replicates=3, norm=["sn"], batch_size=[2, 16]), ["init", "split"])
    return load_study_records(write_study(tmp_path_factory.mktemp("seeds"), study))


def test_every_cell_has_a_run_for_each_seed_and_each_further_replicate(records: StudyRecords) -> None:
    planned = plan_trials(records.study)
    assert [trial.replicate for trial in planned[::2]] == [0, 1, 2, 1001, 1002, 3001, 3002]
    assert records.trials["replicate"].tolist() == [0, 0, 1, 1, 2, 2]
    assert records.seed_runs["replicate"].tolist() == [1001, 1001, 1002, 1002, 3001, 3001, 3002, 3002]
    assert records.n_planned == records.n_finished == 6


def test_seed_runs_change_no_other_number_of_an_answer(records: StudyRecords, tmp_path: Path) -> None:
    without = load_study_records(write_study(tmp_path, with_seeds(records.study, [])))
    numbers = [
        [json.dumps(effect.to_json()) for effect in answer_impacts(each).effects if "alone" not in effect.comparison]
        for each in (records, without)
    ]
    assert numbers[0] == numbers[1]


def test_distances_are_those_of_runs_that_differ_in_one_seed(records: StudyRecords) -> None:
    answer = answer_impacts(records)
    rows = {row.comparison: row.estimate for row in answer.effects if row.measure.name == "seed_distance"}
    assert {"initialization alone", "data split alone"} < rows.keys()
    squares = []
    for trial_id in records.trials["trial_id"].unique():
        keys = [f"{trial_id}-r{run}" for run in (0, 1001, 1002)]
        pairs = [np.stack([records.profiles[key] for key in pair]) for pair in combinations(keys, 2)]
        squares.append(np.mean([pool_distances([pair]) ** 2 for pair in pairs]))  # type: ignore[operator]
    assert rows["initialization alone"].value == pytest.approx(np.sqrt(np.mean(squares)))
    assert rows["initialization alone"].low is None
    assert "Seeds varied apart" in answer.answer


def test_groups_of_one_run_say_nothing() -> None:
    assert pool_deviations([np.array([0.5])]) is None
    assert pool_distances([]) is None
    assert pool_deviations([np.array([1.0, 3.0]), np.array([2.0])]) == pytest.approx(np.sqrt(2))


def test_seeds_that_are_varied_apart_need_a_grid_and_two_replicates() -> None:
    study = build_study(replicates=1, norm=["sn"], batch_size=[2, 16])
    with pytest.raises(UserError, match=r"seeds\.apart: seeds can be varied apart in a study with at least 2"):
        with_seeds(study, ["data"])
    with pytest.raises(UserError, match="with a grid"):
        with_seeds(study, ["data"], search={"sampler": "random", "n_trials": 2})
    with pytest.raises(UserError, match="apart"):
        with_seeds(study, ["order"])


def test_a_study_without_records_has_no_rows(tmp_path: Path) -> None:
    study = with_seeds(build_study(replicates=2, norm=["sn"], batch_size=[2, 16]), ["data"])
    folder: StudyFolder = write_study(tmp_path, study, only=lambda trial: False)
    assert not [row for row in answer_impacts(load_study_records(folder)).effects if "alone" in row.comparison]
