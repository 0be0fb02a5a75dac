"""Whether another defensible analysis would have said the same: which verdicts count as fragile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from study.analysis.questions.impacts import answer_impacts, explore_impacts
from study.analysis.questions.robustness import (
    CLAIM,
    LAST_FIFTH,
    Analysis,
    Robustness,
    format_agreement,
    format_fragile,
    format_fragile_choices,
)
from study.analysis.questions.tasks import answer_tasks, explore_tasks
from study.analysis.questions.useful import answer_useful
from study.analysis.questions.useful_robustness import average_late_epochs, explore_useful
from study.analysis.records import StudyRecords
from study.analysis.report.interim_answers import format_answer
from study.analysis.report.registry import add_robustness, answer_questions
from study.analysis.statistics.intervals import Estimate, Floats
from study.analysis.weight_tables import average_last_fifth, find_first_late_epoch
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.plan.analysis_plan import LAST_EPOCH
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import build_study

FACTORS: dict[str, Any] = {"depth": [8, 14], "batch_size": [2, 16]}
NORMS: dict[str, Any] = {"norm": ["sn", "bn", "gn"], "batch_size": [2, 16]}
SETTINGS: dict[str, Any] = {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}
PLACES = {"stem": 1.5, "norm1": -1.0, "norm2": 0.5, "shortcut": 2.0}


def _draw(truth: Truth | None = None, question: str = "impacts", replicates: int = 4, **more: Any) -> StudyRecords:
    which = {name: more.pop(name) for name in ("only", "diverged", "failed") if name in more}
    study = build_study(replicates=replicates, questions=(question,), **(more or FACTORS))
    return SyntheticStudy(study).draw_records(truth or Truth(), **which)


def _by_place(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    return np.array([PLACES[layer.place] for layer in layers])[:, None]


# ----------------------------------------------------------------------------------------- what counts as fragile


def _analysis(verdict: Any = "supported", depth: Any = "supported", **choices: str) -> Analysis:
    return Analysis(choices={"distance": "a", "moment": "b"} | choices, verdict=verdict, factors={"depth": depth})


def test_equal_verdicts_are_not_fragile() -> None:
    found = Robustness(analyses=[_analysis(), _analysis(distance="c"), _analysis(moment="d")])
    assert not found.is_fragile
    assert found.fragile == []
    assert found.changes == {}
    assert format_agreement(found) == "3 of 3 analyses agree on the claim and 3 on depth."
    assert format_fragile(found) == "No verdict changes if a single choice is made in another way."


def test_a_neighbor_with_another_verdict_makes_fragile() -> None:
    found = Robustness(analyses=[_analysis(), _analysis("not supported", distance="Aitchison")])
    assert found.is_fragile
    assert found.changes == {"distance: Aitchison": {CLAIM: "not supported"}}
    assert format_agreement(found) == "1 of 2 analyses agree on the claim (1: evidence against) and 2 on depth."
    assert format_fragile(found) == 'Fragile: with the Aitchison distance, the claim has "evidence against".'
    assert format_fragile_choices(found) == "with the Aitchison distance"


def test_analyses_that_differ_in_two_choices_are_counted_and_make_nothing_fragile() -> None:
    found = Robustness(analyses=[_analysis(), _analysis("not supported", distance="c", moment="d")])
    assert not found.is_fragile
    assert found.count_agreeing() == 1


def test_a_factor_may_be_fragile_where_the_claim_is_not() -> None:
    found = Robustness(analyses=[_analysis(), _analysis(depth="not enough evidence", distance="Aitchison")])
    assert not found.is_fragile
    assert found.fragile == ["depth"]
    assert format_fragile(found) == 'Fragile: with the Aitchison distance, depth has "not enough evidence".'


def test_a_factor_that_an_analysis_cannot_judge_is_no_disagreement() -> None:
    found = Robustness(analyses=[_analysis(), replace(_analysis(distance="c"), factors={})])
    assert found.fragile == []
    assert "(" not in format_agreement(found)


# ------------------------------------------------------------------------------------------------ questions 2 and 3


def test_the_planned_analysis_is_the_first_and_has_the_verdicts_of_the_answer() -> None:
    records = _draw(Truth(bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16)))
    answer, found = answer_impacts(records), explore_impacts(records)
    assert found.planned.choices == {
        "distance": "Jensen-Shannon", "alignment": "stage and place", "statistic": "both", "moment": LAST_EPOCH,
    }  # fmt: skip
    assert found.planned.verdict == answer.verdict == "supported"
    assert dict(found.planned.factors) == dict(answer.factors)
    effects = {row.comparison: row.estimate for row in answer.effects if row.measure.name == "effect"}
    assert dict(found.planned.estimates) == effects


def test_every_combination_of_choices_is_there_once() -> None:
    found = explore_impacts(_draw())
    assert len(found.analyses) == 54
    assert len({tuple(each.choices.items()) for each in found.analyses}) == 54
    assert len(found.neighbors) == 2 + 2 + 2 + 1


def test_a_clear_effect_is_found_by_every_analysis() -> None:
    found = explore_impacts(_draw(Truth(bn_logit=lambda trial: 3.0 * (trial.config.batch_size == 16))))
    assert found.count_agreeing("batch_size") == 54
    assert "batch_size" not in found.fragile


def test_an_effect_of_depth_that_only_relative_depth_shows_is_fragile() -> None:
    """The same weights at every place of both depths: interpolated over relative depth, they seem to differ."""
    found = explore_impacts(_draw(Truth(layer_logits=_by_place), replicates=6))
    assert found.planned.factors["depth"] != "supported"
    assert found.changes["alignment: relative depth"]["depth"] == "supported"
    assert "depth" in found.fragile
    assert "with layers matched by relative depth" in format_fragile(found)


def test_an_effect_on_one_statistic_shows_in_that_statistic() -> None:
    def of_variances(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
        return np.array([[0.0, 1.5 * (trial.config.batch_size == 16)]])

    found = explore_impacts(_draw(Truth(layer_logits=of_variances)))
    by_statistic = {each.choices["statistic"]: each for each in found.neighbors.values()}
    assert by_statistic["variances"].factors["batch_size"] == "supported"
    assert by_statistic["means"].factors["batch_size"] != "supported"


def test_question_3_is_judged_by_its_own_claim() -> None:
    records = _draw(Truth(bn_logit=lambda trial: 2.0 * (trial.config.task != "classification")), "tasks", **SETTINGS)
    answer, found = answer_tasks(records), explore_tasks(records)
    assert found.planned.verdict == answer.verdict == "supported"
    assert dict(found.planned.factors) == dict(answer.factors)
    assert not found.is_fragile


@pytest.mark.parametrize(("replicates", "only"), [(1, lambda trial: True), (3, lambda trial: False)])
def test_without_replicates_or_results_nothing_is_fragile(replicates: int, only: Any) -> None:
    for question, explore, factors in (("impacts", explore_impacts, FACTORS), ("useful", explore_useful, NORMS)):
        found = explore(_draw(None, question, replicates, only=only, **factors))
        assert {each.verdict for each in found.analyses} == {"not enough evidence"}
        assert not found.is_fragile
        assert found.has_estimates == (question == "useful" and replicates == 1)  # displacements need two replicates


# ------------------------------------------------------------------------------------------------------- question 1


def _gain(by: float) -> Truth:
    return Truth(accuracy=lambda trial: 0.9 + by * (trial.config.norm == "sn"))


def test_the_planned_comparison_of_norms_has_the_verdict_of_the_answer() -> None:
    records = _draw(_gain(0.05), "useful", **NORMS)
    answer, found = answer_useful(records), explore_useful(records)
    assert found.planned.verdict == answer.verdict == "supported"
    effects = {row.comparison: row.estimate for row in answer.effects if row.measure.name == "val_accuracy"}
    assert dict(found.planned.estimates) == effects
    assert not found.is_fragile
    assert [tuple(each.choices.values())[:2] for each in found.analyses] == [
        ("validation accuracy", LAST_EPOCH), ("validation accuracy", LAST_FIFTH), ("test accuracy", LAST_EPOCH),
    ]  # fmt: skip


def test_a_verdict_that_hangs_on_the_split_is_fragile() -> None:
    records = _draw(_gain(0.05), "useful", **NORMS)
    worse = records.trials["test_accuracy"].where(
        records.trials["norm"].ne("sn"), records.trials["test_accuracy"] - 0.1
    )
    found = explore_useful(replace(records, trials=records.trials.assign(test_accuracy=worse)))
    assert found.changes["metric: test accuracy"] == {CLAIM: "not supported"}
    assert "by test accuracy" in format_fragile(found)


def test_diverged_runs_count_as_guesses_in_the_analyses_that_say_so() -> None:
    def diverged(trial: PlannedTrial) -> bool:
        return trial.config.norm == "bn" and trial.config.batch_size == 2

    found = explore_useful(_draw(_gain(0.05), "useful", diverged=diverged, **NORMS))
    at_chance = found.neighbors["divergence: diverged runs at chance level"]
    value = at_chance.estimates["sn - bn"].value
    assert len(found.analyses) == 6
    assert value == pytest.approx((0.95 - 0.1 + 0.05) / 2, abs=0.03)


# --------------------------------------------------------------------------------------- the last fifth of the epochs


@pytest.mark.parametrize(("last", "first"), [(0, 0), (1, 1), (2, 1), (4, 3), (10, 9), (11, 9), (20, 17), (100, 81)])
def test_the_last_fifth_has_at_least_two_epochs_and_never_the_state_before_training(last: int, first: int) -> None:
    assert find_first_late_epoch(pd.Series([last])).tolist() == [first]


def test_weights_are_averaged_over_the_last_fifth() -> None:
    records = _draw(replicates=1)
    late = average_last_fifth(records.weights)
    rows = records.weights.to_pandas().astype({"trial_id": str, "statistic": str, "normalizer": str})
    rows = rows[rows["epoch"].isin([3, 4]) & rows["role"].eq("backbone")]  # of 4 epochs
    by = ["trial_id", "replicate", "layer_index", "statistic", "normalizer"]
    expected = rows.groupby(by)["weight"].mean()
    np.testing.assert_allclose(late.set_index(by)["weight"].sort_index(), expected.sort_index(), rtol=1e-6)
    assert len(late) == len(records.switch)


def test_a_study_without_weights_has_no_means_of_them() -> None:
    records = _draw(only=lambda trial: False)
    assert isinstance(records.weights, pa.Table)
    assert average_last_fifth(records.weights).empty


def test_curves_are_averaged_over_the_last_fifth() -> None:
    curves = pd.DataFrame({"key": "a", "epoch": range(11), "name": "val_accuracy", "value": np.arange(11.0)})
    assert average_late_epochs(curves, "val_accuracy").to_dict() == {"a": 9.5}
    assert average_late_epochs(curves, "test_accuracy").empty


# ------------------------------------------------------------------------------------------------- answers and texts


def test_interim_answers_say_nothing_of_other_analyses() -> None:
    records = _draw(only=lambda trial: trial.replicate == 0)
    answers = add_robustness(answer_questions(records), records)
    assert answers["impacts"].interim
    assert answers["impacts"].robustness is None
    assert answers["impacts"].to_json()["fragile"] is None
    assert answers["impacts"].to_json()["robustness"] == []


def test_a_terminal_names_the_choices_that_change_a_verdict() -> None:
    answer = answer_impacts(_draw())
    fragile = Robustness(analyses=[_analysis(answer.verdict), _analysis("not supported", distance="Aitchison")])
    head = format_answer("impacts", answer)[0]
    assert head == f"impacts: {answer.verdict}"
    assert format_answer("impacts", replace(answer, robustness=fragile))[0] == (
        f"{head} (fragile: with the Aitchison distance)"
    )


def test_plain_values_hold_every_analysis() -> None:
    analysis = replace(_analysis(), estimates={"depth": Estimate(value=0.123456789, n=3), "solver": Estimate()})
    assert analysis.to_json() == {
        "choices": {"distance": "a", "moment": "b"}, "verdict": "supported", "factors": {"depth": "supported"},
        "estimates": {"depth": 0.123457, "solver": None}, "margin": 0.0,
    }  # fmt: skip
