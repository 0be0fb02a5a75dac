"""Each norm at its own best: the level of a tuned factor is chosen on validation, per norm and cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.analysis.questions.tuned import compare_tuned, select_best
from study.analysis.questions.useful import answer_useful
from study.analysis.records import StudyRecords, load_study_records
from study.bench.synthetic_records import Truth
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.plan.loading import study_from_dict
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import build_study, write_study
from tests.analysis.estimates import holds

RATES = [0.1, 0.4]
BEST = {("sn", 2): 0.1, ("sn", 16): 0.4, ("bn", 2): 0.4, ("bn", 16): 0.4}


def build_tuned(tuned: list[str], replicates: int = 4, **factors: object) -> StudyConfig:
    study = build_study(replicates, ("useful",), **{
        "norm": ["sn", "bn"], "batch_size": [2, 16], "learning_rate": RATES, **factors,
    })  # fmt: skip
    data = study.model_dump(mode="json")
    return study_from_dict({**data, "analysis": {**data["analysis"], "tuned": tuned}}, "test")


def accuracy(trial: PlannedTrial) -> float:
    """At its best rate sn has 0.93 and bn 0.91; at the other rate both lose 0.1."""
    config = trial.config
    lost = 0.0 if config.learning_rate == BEST[config.norm, config.batch_size] else 0.1
    return (0.93 if config.norm == "sn" else 0.91) - lost


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> StudyRecords:
    truth = Truth(accuracy=accuracy)
    return load_study_records(write_study(tmp_path_factory.mktemp("tuned"), build_tuned(["learning_rate"]), truth))


def test_the_best_level_is_taken_in_every_cell(records: StudyRecords) -> None:
    chosen = select_best(records.from_scratch, ["norm", "batch_size"], ["learning_rate"], "val_accuracy")
    found = chosen.groupby(["norm", "batch_size"])["learning_rate"].unique().map(list).to_dict()
    assert found == {cell: [rate] for cell, rate in BEST.items()}
    assert len(chosen) == len(records.trials) / 2


def test_norms_are_compared_by_test_scores_at_their_best(records: StudyRecords) -> None:
    (item,) = compare_tuned(records)
    assert holds(item.estimate, 0.02)
    assert item.n_pairs == item.n_pairs_planned == 8
    answer = answer_useful(records)
    (row,) = [effect for effect in answer.effects if effect.measure.name == "tuned_difference"]
    assert row.estimate == item.estimate
    assert "each norm at its own best learning_rate" in answer.answer
    (equal,) = [effect for effect in answer.effects if effect.measure.name == "val_accuracy"]
    assert equal.estimate.value == pytest.approx(0.02 - 0.05 + 0.05, abs=0.01)  # means over both rates


def test_a_level_at_which_runs_diverge_is_not_the_best() -> None:
    steady = [("sn", 0.1, replicate, "done", 0.8) for replicate in range(3)]
    unstable = [("sn", 0.4, 0, "done", 0.95), ("sn", 0.4, 1, "diverged", None), ("sn", 0.4, 2, "diverged", None)]
    trials = pd.DataFrame([*steady, *unstable], columns=["norm", "learning_rate", "replicate", "state", "val_accuracy"])
    assert select_best(trials, ["norm"], ["learning_rate"], "val_accuracy")["learning_rate"].unique().tolist() == [0.1]


def test_a_level_is_not_chosen_for_the_luck_of_the_run_that_is_compared() -> None:
    """One lucky run at 0.4 makes 0.4 the best level for the other replicates, and not for its own."""
    scores = {0.1: [0.80, 0.80, 0.80], 0.4: [0.95, 0.79, 0.79]}
    rows = [("sn", rate, seed, "done", score) for rate, found in scores.items() for seed, score in enumerate(found)]
    trials = pd.DataFrame(rows, columns=["norm", "learning_rate", "replicate", "state", "val_accuracy"])
    chosen = select_best(trials, ["norm"], ["learning_rate"], "val_accuracy")
    assert chosen.set_index("replicate")["learning_rate"].to_dict() == {0: 0.1, 1: 0.4, 2: 0.4}
    assert chosen["val_accuracy"].mean() < 0.80  # the mean of either level is larger


def test_with_one_replicate_its_own_value_chooses() -> None:
    rows = [("sn", 0.1, 0, "done", 0.8), ("sn", 0.4, 0, "done", 0.9)]
    trials = pd.DataFrame(rows, columns=["norm", "learning_rate", "replicate", "state", "val_accuracy"])
    assert select_best(trials, ["norm"], ["learning_rate"], "val_accuracy")["learning_rate"].tolist() == [0.4]


def test_without_results_the_first_level_is_kept(tmp_path: Path) -> None:
    folder = write_study(tmp_path, build_tuned(["learning_rate"]), only=lambda trial: False)
    empty = load_study_records(folder)
    chosen = select_best(empty.from_scratch, ["norm", "batch_size"], ["learning_rate"], "val_accuracy")
    assert chosen["learning_rate"].unique().tolist() == [0.1]
    assert compare_tuned(empty)[0].estimate.value is None
    assert answer_useful(empty).verdict == "not enough evidence"


def test_nothing_is_compared_twice_where_nothing_is_tuned(tmp_path: Path) -> None:
    assert compare_tuned(load_study_records(write_study(tmp_path, build_tuned([])))) == []


def test_a_tuned_setting_must_be_a_factor() -> None:
    with pytest.raises(UserError, match="tuned"):
        build_tuned(["momentum"])


def test_the_interval_allows_for_the_choice_among_levels_that_are_equally_good(tmp_path: Path) -> None:
    """A jackknife that chooses again without each replicate; where one level is clearly best, it changes nothing."""
    study = build_tuned(["learning_rate"], 4, batch_size=[2])
    records = load_study_records(write_study(tmp_path, study, Truth(accuracy=lambda trial: 0.9, accuracy_noise=0.01)))
    (item,) = compare_tuned(records)

    def estimate(trials: pd.DataFrame) -> float:
        best = select_best(trials, ["norm", "batch_size"], ["learning_rate"], "val_accuracy").set_index("norm")
        return best["test_accuracy"]["sn"].mean() - best["test_accuracy"]["bn"].mean()

    trials = records.trials
    left_out = [estimate(trials[trials["replicate"] != seed].reset_index(drop=True)) for seed in range(4)]
    error = np.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2))
    reach = stats.t.ppf(0.975, 3) * error
    assert reach > 1.3 * stats.t.ppf(0.975, 3) * np.std(item.per_replicate, ddof=1) / 2
    assert item.estimate.low == pytest.approx(estimate(trials) - reach)
    assert item.estimate.high == pytest.approx(estimate(trials) + reach)
    assert item.p_value == pytest.approx(2 * stats.t.sf(abs(estimate(trials)) / error, 3))
