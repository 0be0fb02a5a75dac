"""Which layers a factor moves, and how often the answer is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import Choices, collect_choices, select_choices
from study.analysis.questions.layer_effects import format_layer_effects, layer_rows, measure_positions
from study.analysis.records import StudyRecords
from study.analysis.statistics.displacement import displacement, displacement_p_values
from study.analysis.statistics.distances import DISTANCES
from study.analysis.statistics.intervals import Floats, one_sided_p_value
from study.analysis.statistics.moments import CellDistances, Moments, measure_contrasts
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import build_study

# Not depth: synthetic weights follow the index of a layer, which differs at one position of networks of other depth.
FACTORS: dict[str, Any] = {
    "solver": ["sgd", "adam"], "batch_size": [2, 16], "initialization": ["he_normal", "xavier_uniform"],
}  # fmt: skip
DRAWS = 60


def _collect(records: StudyRecords) -> Choices:
    return collect_choices(records.profiles, select_choices(records), list(FACTORS), records.space)


def _in_stage_2(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    return np.array([1.0 * (trial.config.batch_size == 16) * (layer.stage == 2) for layer in layers])[:, None]


def _draw(truth: Truth, replicates: int = 4, **which: Any) -> Choices:
    study = SyntheticStudy(build_study(replicates=replicates, questions=("impacts",), **FACTORS))
    return _collect(study.draw_records(truth, **which))


def _moved(rows: Sequence[Effect]) -> set[str]:
    return {row.comparison for row in rows if row.p_value is not None and row.p_value < 0.05}


def test_the_layers_that_a_factor_moves_are_found() -> None:
    choices = _draw(Truth(layer_logits=_in_stage_2))
    rows = layer_rows(choices, 0.95)
    assert len(rows) == len(FACTORS) * len(choices.profiles.positions)
    moved = {f"batch_size, {name}" for name in choices.profiles.positions if name.startswith("stage 2")}
    assert moved <= _moved(rows)
    text = format_layer_effects(rows, list(FACTORS), 0.95)[0]
    n = len(choices.profiles.positions)
    assert re.search(
        rf"batch_size {len(moved)} of {n} \(displacement among all {n}: largest 0\.\d+ at stage 2, .* and smallest ",
        text,
    )
    assert "solver 0 of" in text


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda distance: str(distance.name))
def test_the_mean_over_positions_is_the_distance_of_whole_networks(distance: Any) -> None:
    choices = _draw(Truth(), 2)
    np.testing.assert_allclose(
        measure_positions(choices, distance).mean(axis=-1), choices.measure(distance).mean(axis=-1), atol=1e-12
    )


def test_p_values_are_those_of_the_intervals() -> None:
    choices = _draw(Truth(layer_logits=_in_stage_2))
    cells = CellDistances(measure_positions(choices))
    for contrasts in choices.contrasts.values():
        moments = measure_contrasts(cells, contrasts)
        intervals = [displacement(moments.select_axis(number), 0.95) for number in range(moments.squared.shape[1])]
        expected = [one_sided_p_value(interval, 0.0, 0.95) for interval in intervals]
        np.testing.assert_allclose(displacement_p_values(moments), np.array(expected, dtype=float), atol=1e-7)


def test_without_any_spread_a_position_is_moved_for_certain_or_not_at_all() -> None:
    squared = np.tile([0.04, 0.0], (5, 1))
    parts = np.tile([0.04, 0.0], (4, 4, 1))
    certain, noisy = (
        Moments(squared=squared, seeds=seeds, parts=parts) for seeds in (np.zeros((5, 2)), np.ones((5, 2)))
    )
    assert displacement_p_values(certain).tolist() == [0.0, 1.0]
    assert np.isnan(displacement_p_values(noisy)).all()


def test_two_replicates_give_displacements_without_p_values() -> None:
    rows = layer_rows(_draw(Truth(), 2), 0.95)
    assert rows
    assert {row.p_value for row in rows} == {None}
    assert format_layer_effects(rows, list(FACTORS), 0.95) == []


def test_without_data_there_are_no_rows() -> None:
    assert layer_rows(_draw(Truth(), only=lambda trial: False), 0.95) == []


@pytest.mark.slow
@pytest.mark.parametrize("layer_logits", [lambda trial, layers: 0.0, _in_stage_2], ids=["none", "a third"])
def test_few_of_the_layers_that_are_said_to_move_do_not(layer_logits: Any) -> None:
    """The false discovery rate, with and without layers that do move."""
    study = SyntheticStudy(build_study(replicates=4, questions=("impacts",), **FACTORS))
    shares = []
    for seed in range(DRAWS):
        moved = _moved(layer_rows(_collect(study.draw_records(Truth(layer_logits=layer_logits, seed=seed))), 0.95))
        true = (
            {name for name in moved if name.startswith("batch_size, stage 2")} if layer_logits is _in_stage_2 else set()
        )
        shares.append(len(moved - true) / max(len(moved), 1))
    assert np.mean(shares) <= 0.05


def test_only_positions_with_p_values_are_adjusted() -> None:
    rows = layer_rows(_draw(Truth()), 0.95)
    p_values = np.array([row.p_value for row in rows], dtype=float)
    assert np.isfinite(p_values).all()
    assert p_values.max() <= 1
    assert replace(rows[0], p_value=None).to_json()["p_value"] is None
