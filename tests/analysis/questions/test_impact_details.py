from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import select_choices
from study.analysis.questions.impact_details import NOTHING, find_dynamics, find_trends
from study.analysis.records import StudyRecords, load_study_records
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import Truth, build_study, write_study
from tests.analysis.estimates import holds

AXES = {"norm": ["sn"], "batch_size": [2, 4, 8], "chunks": [2, 4, 8]}


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., tuple[list[Effect], str, StudyRecords]]:
    """Effects and text that `find_trends` has of a study whose logit of bn is planted."""

    def of(
        bn_logit: Callable[[PlannedTrial], float] = lambda trial: 0.0,
        replicates: int = 4,
        only: Any = None,
        **factors: Any,
    ) -> tuple[list[Effect], str, StudyRecords]:
        study, truth = build_study(replicates=replicates, **factors), Truth(bn_logit=bn_logit, logit_noise=0.05)
        records = load_study_records(write_study(tmp_path, study, truth, only=only or (lambda _: True)))
        found = find_trends(records, select_choices(records))
        effects, sentences = found.effects, found.sentences
        return effects, " ".join(sentences), records

    return of


def _of(effects: list[Effect], measure: str) -> dict[str, Effect]:
    return {effect.comparison: effect for effect in effects if effect.measure.name == measure}


def test_a_share_of_b_alone(find: Any) -> None:
    effects, text, records = find(lambda trial: 0.4 * np.log2(trial.config.batch_size), **AXES)
    assert "BN share, B against G x B: it rises with B and not with G x B." in text
    slopes = _of(effects, "share_slope")
    assert all(effect.measure.headline for effect in slopes.values())  # they answer the question of `batch_axes`
    assert slopes["B at equal G x B"].estimate.above(0.03)
    assert holds(slopes["G x B at equal B"].estimate, 0)
    with_b = _of(effects, "trend_batch")["bn of variances"]
    assert with_b.p_value is not None
    assert with_b.p_value < 0.05
    assert sorted(with_b.trials) == records.trials.index.tolist()


@pytest.mark.parametrize(
    ("levels", "odd", "said"),
    [
        ([2, 4, 16], 4, "changes in no clear direction for bn of"),  # its slope alone falls
        ([2, 4, 16], 16, "rises for bn of"),
        ([2, 16], 16, "rises for bn of"),
    ],
    ids=["the middle", "an end", "no middle"],
)
def test_a_level_between_the_ends_makes_no_direction(find: Any, levels: list[int], odd: int, said: str) -> None:
    effects, text, _ = find(lambda trial: 3.0 * (trial.config.batch_size == odd), norm=["sn"], batch_size=levels)
    (sentence,) = re.findall(r"With B, the weight [^.]*", text)
    assert said in sentence
    slope = _of(effects, "trend_batch")["bn of means"]
    assert slope.p_value is not None
    assert slope.p_value < 0.05
    ends = _of(effects, "trend_batch_ends")
    assert bool(ends) == (len(levels) > 2)
    if ends:
        assert ends["bn of means"].estimate.excludes(0) == (odd == 16)


def test_a_share_of_the_gradient_batch_alone(find: Any) -> None:
    _, text, _ = find(lambda trial: 0.4 * np.log2(trial.gradient_batch), **AXES)
    assert "BN share, B against G x B: it rises with G x B and not with B." in text


def test_with_a_fixed_number_of_chunks_the_two_are_not_told_apart(find: Any) -> None:
    effects, text, _ = find(lambda trial: 0.4 * np.log2(trial.config.batch_size), batch_size=[2, 4])
    assert "where cells agree in everything else, the two do not vary independently;" in text
    assert not _of(effects, "share_slope")


def test_trends_with_depth_are_named(find: Any) -> None:
    effects, text, _ = find(depth=[8, 14])  # the logit of ln rises with depth, by 1
    said = "With depth inside a network and with receptive field, among layers of the same place, the weight rises for"
    assert f"{said} ln of means and ln of variances and falls for" in text
    assert text.count("the weight rises") == 1
    assert _of(effects, "trend_depth")["ln of means"].estimate.above(0.8)
    assert "rank correlation of 1.00" in text
    assert "one B" in text


def test_trends_that_differ_are_named_separately(find: Any) -> None:
    _, _, records = find(depth=[8, 14])
    upside_down = replace(records, switch=records.switch.eval("receptive_field = -receptive_field"))
    depth, field, _ = find_trends(upside_down, select_choices(upside_down)).sentences[:3]
    assert depth.startswith("With depth inside a network, among layers of the same place, the weight rises for ln of")
    assert field.startswith("With receptive field, among layers of the same place, the weight rises for bn of")


def test_layers_without_a_receptive_field_have_no_trend_with_it(find: Any) -> None:
    _, _, records = find(replicates=2, depth=[8])
    nowhere = replace(records, switch=records.switch.assign(receptive_field=np.nan))
    found = find_trends(nowhere, select_choices(nowhere))
    effects, sentences = found.effects, found.sentences
    assert {effect.measure.name for effect in effects} == {"trend_depth"}
    assert "receptive field" not in " ".join(sentences)


def test_one_replicate_has_numbers_and_no_test(find: Any) -> None:
    effects, text, _ = find(replicates=1, **AXES)
    assert "With B, nothing can be said of trends from one replicate." in text
    assert "cannot be said yet" in text
    assert all(effect.p_value is None and effect.estimate.low is None for effect in effects)


def test_a_pool_without_bn_has_no_share(find: Any) -> None:
    effects, text, _ = find(norm=["sn[in,ln]"], batch_size=[2, 16])
    assert "sn[in,ln] has no bn in its pool" in text
    assert {effect.comparison.split()[0] for effect in effects} == {"in", "ln"}


def test_nothing_finished_says_nothing(find: Any) -> None:
    effects, text, records = find(only=lambda trial: False, **AXES)
    assert (effects, text) == ([], "")
    assert find_dynamics(records, select_choices(records)) == NOTHING


def test_cells_that_lack_a_level_count_with_the_others_in_the_trend_with_b(find: Any) -> None:
    effects, _, records = find(only=lambda trial: trial.levels != {"norm": "sn", "batch_size": 4, "chunks": 8}, **AXES)
    chunks = records.trials["chunks"].loc[list(_of(effects, "trend_batch")["bn of means"].trials)]
    assert chunks.value_counts().to_dict() == {2: 12, 4: 12, 8: 8}


# ---------------------------------------------------------------------------------------------- dynamics


def test_dynamics_are_compared_between_the_ends_of_factors(find: Any) -> None:
    # Choices grow to half of their logit in an epoch: of four, a strong one settles in the last.
    _, _, records = find(lambda trial: 3.0 * (trial.config.batch_size == 8), **AXES)
    found = find_dynamics(records, select_choices(records))
    effects, sentences = found.effects, found.sentences
    change = _of(effects, "convergence_change")
    assert list(change) == ["batch_size 8 - 2", "chunks 8 - 2"]
    assert change["batch_size 8 - 2"].estimate.above(0)
    assert change["chunks 8 - 2"].p_value is not None
    assert change["chunks 8 - 2"].p_value > 0.05
    assert sentences[-1].startswith("Layers settle at another time with batch_size 8 - 2 (+")
    epochs, part = (_of(effects, name)["mean weights"].estimate.value for name in ("convergence_epoch", "convergence"))
    assert epochs == pytest.approx(4 * (part or 0))


def test_one_recorded_epoch_has_no_dynamics(find: Any) -> None:
    _, _, records = find(replicates=2, batch_size=[2, 16])
    one = replace(records, weights=records.weights.filter(pc.equal(records.weights["epoch"], 0)))
    found = find_dynamics(one, select_choices(one))
    effects, sentences = found.effects, found.sentences
    assert effects == []
    assert "one recorded epoch" in sentences[0]
