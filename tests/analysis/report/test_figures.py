"""Figures: what they draw equals what the records hold, and every point leads to the trials it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from study.analysis.questions.answers import Effect
from study.analysis.questions.tasks import TOGETHER, name_settings
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.effect_figures import draw_factor_ranking, draw_forest
from study.analysis.report.figure_index import select_all_epochs, select_finished_choices
from study.analysis.report.layer_figures import (
    compute_layer_means,
    draw_layers_by_epoch,
    draw_triangles,
    draw_weight_maps,
)
from study.analysis.report.plot_style import TrialGroups
from study.analysis.report.registry import QUESTIONS, draw_figures
from study.analysis.report.report import Report
from study.analysis.report.score_figures import draw_metric_by_norm
from study.analysis.report.share_figures import draw_share_by_batch, draw_share_by_setting
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.analysis.statistics.profiles import DEPTH_GRID, depth_profiles
from study.config.choice_space import NORMALIZATION
from tests.analysis.conftest import Truth, build_study, write_study

WHAT = "ResNet-8"


@pytest.fixture(scope="module")
def records(finished: Report) -> StudyRecords:
    return finished.records


@pytest.fixture(scope="module")
def chosen(records: StudyRecords) -> pd.DataFrame:
    """The trials of one network depth."""
    trials = select_finished_choices(records, "depth", "batch_size")
    return trials[trials["depth"].eq(8)]


@pytest.fixture(scope="module")
def drawn(finished: Report) -> list[go.Figure]:
    return [figure for figures in finished.figures.values() for figure in figures]


def _draw(records: StudyRecords) -> list[go.Figure]:
    questions = records.study.analysis.questions
    return [figure for name in questions for figure in draw_figures(name, records, QUESTIONS[name].answer(records))]


def _points(trace: Any) -> Iterator[list[Any]]:
    """The customdata of every point, or of every cell of a map."""
    for entry in trace.customdata or ():
        yield from entry if trace.type == "heatmap" else [entry]


# ------------------------------------------------------------------------------------------ the trials behind


def test_groups_are_held_once() -> None:
    groups = TrialGroups()
    assert [groups.number(rows) for rows in ([3, 1], [2], [1, 3], [])] == [0, 1, 0, -1]
    assert groups.rows == [[1, 3], [2]]
    assert groups.n_trials == 3


def test_every_figure_leads_to_trials_and_is_told_in_words(drawn: list[go.Figure], records: StudyRecords) -> None:
    assert len(drawn) > 8
    for figure in drawn:
        meta = figure.layout.meta
        numbers = {point[0] for trace in figure.data for point in _points(trace)}
        assert numbers
        assert numbers <= {-1, *range(len(meta["trials"]))}
        assert {row for group in meta["trials"] for row in group} <= set(records.trials.index)
        assert 20 < len(meta["alt"]) < 2000
        assert "nan" not in meta["alt"] + figure.layout.title.subtitle.text
        assert figure.layout.title.text


def test_figures_hold_lists_of_finite_numbers(drawn: list[go.Figure]) -> None:
    """W&B's page shows neither NaN nor the packed arrays that plotly makes of numpy arrays."""
    for figure in drawn:
        assert "bdata" not in json.dumps(figure.to_dict(), allow_nan=False)


def test_a_point_leads_to_the_trials_of_its_level(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_weight_maps(records.switch, chosen, records.space, "batch_size", WHAT)
    of_batch = [chosen.index[chosen["batch_size"].eq(batch)].to_list() for batch in (2, 16)]
    assert figure.layout.meta["trials"] == of_batch
    assert [{point[0] for point in _points(trace)} for trace in figure.data] == [{0}, {0}, {1}, {1}]


def test_a_replicates_point_leads_to_its_own_trials(records: StudyRecords) -> None:
    done = records.done
    figure = draw_metric_by_norm(done, ["sn", "bn"], records.measures["val_accuracy"])
    points = figure.data[0]  # of sn
    assert len(points.x) == 2 * 4
    for value, (group, norm, batch, replicate, _) in zip(points.y, points.customdata, strict=True):
        rows = done[done["norm"].eq(norm) & done["batch_size"].eq(batch) & done["replicate"].eq(replicate)]
        assert figure.layout.meta["trials"][group] == rows.index.to_list()
        assert value == pytest.approx(rows["val_accuracy"].mean(), abs=1e-5)


# ----------------------------------------------------------------------------------------------- what is drawn


def test_a_map_shows_each_layer(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_weight_maps(records.switch, chosen, records.space, "batch_size", WHAT)
    keys = chosen["key"][chosen["batch_size"].eq(16)]
    rows = records.switch[records.switch["key"].isin(keys) & records.switch["statistic"].eq("var")]
    expected = rows.groupby(["normalizer", "layer_index"])["weight"].mean().unstack()
    heatmap = figure.data[-1]  # the largest B, variance weights
    np.testing.assert_allclose(np.array(heatmap.z), expected.loc[list(heatmap.y)].to_numpy(), atol=1e-4)
    names = rows.sort_values("layer_index")["layer"].unique()
    assert [point[1] for point in heatmap.customdata[0]] == list(names)


def test_networks_with_unlike_layers_meet_at_relative_depths(records: StudyRecords) -> None:
    trials = select_finished_choices(records, "batch_size")
    table = compute_layer_means(records.switch, trials, records.space)
    profiles = depth_profiles(records.switch, records.space)
    expected = np.mean([profiles[key] for key in trials["key"]], axis=0)[1, :, :3]  # variance weights of in, ln, bn
    np.testing.assert_allclose(table.loc[table["statistic"].eq("var"), ["in", "ln", "bn"]], expected)
    np.testing.assert_allclose(table["position"][: len(DEPTH_GRID)], DEPTH_GRID)
    assert table["stage"].isna().all()


@pytest.mark.parametrize("order", [1, -1])
def test_only_networks_of_one_pool_are_averaged(order: int) -> None:
    rows = [("a", "in", 0.5), ("a", "ln", 0.5), ("b", "in", 0.2), ("b", "ln", 0.2), ("b", "bn", 0.6)]
    switch = pd.DataFrame(rows, columns=["key", "normalizer", "weight"])
    switch = switch.assign(statistic="mean", layer="bn1", layer_index=0, depth_fraction=0.0, stage=0)
    trials = pd.DataFrame({"key": ["a", "b"], "pool": ["in,ln", "in,ln,bn"]})[::order]
    (row,) = compute_layer_means(switch, trials, NORMALIZATION).to_dict("records")
    assert (row["in"], row["ln"], row["bn"]) == (0.2, 0.2, 0.6)


def test_a_triangle_has_a_point_a_layer(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_triangles(records.switch, chosen, records.space, "batch_size", WHAT)
    assert figure is not None
    drawn = [trace for trace in figure.data if trace.customdata is not None]
    assert len(drawn) == 2 * 2  # B, statistic
    for trace in drawn:
        assert len(trace.a) == records.switch.query("key == @chosen['key'].iloc[0]")["layer"].nunique()
        np.testing.assert_allclose(np.sum([trace.a, trace.b, trace.c], axis=0), 1, atol=1e-3)
    assert drawn[0].marker.symbol != drawn[2].marker.symbol


def test_a_share_is_a_mean_over_replicates(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_share_by_batch(records.switch, chosen, records.space, 0.95)
    table = records.switch.merge(chosen[["key", "batch_size"]], on="key")
    means = table.groupby(["statistic", "normalizer", "batch_size"])["weight"].mean()
    for trace in figure.data:
        statistic = "mean" if trace.xaxis == "x" else "var"
        for batch, value, high in zip(trace.x, trace.y, trace.error_y.array, strict=True):
            assert value == pytest.approx(means[statistic, trace.name, int(batch)], abs=1e-4)
            assert high > 0


def test_the_slider_moves_from_even_weights_to_the_last_epoch(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_layers_by_epoch(select_all_epochs(records, chosen), chosen, records.space, WHAT, most=3)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "2", "4"]
    first, last = (step.args[0]["y"] for step in (slider.steps[0], slider.steps[-1]))
    np.testing.assert_allclose(np.concatenate(first), 1 / 3, atol=1e-3)
    assert last == [list(trace.y) for trace in figure.data]


def test_tasks_are_compared_with_their_heads(tmp_path: Path) -> None:
    study = build_study(2, ("tasks",), task=["classification", "segmentation"], dataset=["scenes"])
    records = load_study_records(write_study(tmp_path, study, Truth(bn_logit_of_heads=3.0)))
    weights, trials = pd.concat([records.switch, records.heads]), name_settings(records.done)
    figure = draw_share_by_setting(weights, trials, records.space, TOGETHER, 0.95)
    assert [note.text for note in figure.layout.annotations[2:]] == ["backbone", "decoder"]
    heads = [trace for trace in figure.data if trace.name == "bn" and len(trace.x) == 1]
    expected = records.heads[records.heads["normalizer"].eq("bn")].groupby("statistic")["weight"].mean()
    np.testing.assert_allclose([trace.x[0] for trace in heads], expected.to_numpy(), atol=1e-4)
    assert figure.layout.meta["trials"][heads[0].customdata[0][0]] == records.trials.index[1::2].to_list()


# --------------------------------------------------------------------------------------------------- effects


def _effect(measure: str, comparison: str, value: float, low: float | None, high: float | None) -> Effect:
    estimate = Estimate(value=value, low=low, high=high, n=3)
    return Effect(
        measure=build_measures()[measure], comparison=comparison, estimate=estimate, n_pairs=6, n_pairs_planned=8,
        trials=(4, 2), bootstrap=(0.1, 0.2), share_above=0.75, p_value=0.01, per_replicate=(value, value),
    )  # fmt: skip


def test_a_forest_shows_estimate_interval_and_all_that_is_known() -> None:
    effects = [_effect("val_accuracy", "sn - bn", 0.15, 0.1, 0.3), _effect("val_accuracy", "sn - ln", 0.1, -0.1, 0.3),
               _effect("train_loss", "sn - bn", 0.1, None, None)]  # fmt: skip
    figure = draw_forest(effects, "Title", "Subtitle.")
    estimates = [trace for trace in figure.data if trace.error_x.array is not None]
    assert [list(trace.x) for trace in estimates] == [[0.15, 0.1], [0.1]]
    assert list(estimates[0].error_x.array) == pytest.approx([0.15, 0.2])
    assert list(estimates[0].error_x.arrayminus) == pytest.approx([0.05, 0.2])
    assert list(estimates[0].marker.symbol) == ["diamond", "diamond-open"]
    assert list(estimates[1].error_x.array) == [0]
    for known in ("0.15", "bootstrap 0.1", "0.75", "p 0.01", "6 of 8 pairs"):
        assert known in estimates[0].customdata[0][1]
    assert figure.layout.meta["trials"] == [[2, 4]]
    assert "sn - bn 0.150 (0.100 to 0.300)" in figure.layout.meta["alt"]


def test_a_number_that_compares_nothing_has_no_line() -> None:
    effects = [_effect("val_accuracy", "sn", 0.5, -0.1, 0.9)]
    assert len(draw_forest(effects, "Title", "").layout.shapes) == 1
    plain = draw_forest(effects, "Title", "Subtitle.", compared=False)
    assert not plain.layout.shapes
    assert "line" not in plain.layout.title.subtitle.text


def test_a_ranking_leaves_out_what_no_effect_has() -> None:
    effects = [_effect("effect", "depth", 2.0, 1.5, 3.0), _effect("effect", "solver", 1.0, 0.9, 1.1)]
    columns = {"Jensen-Shannon": {"all weights": "effect", "mean weights": "effect_mean"}, "Other": {"all": "none"}}
    figure = draw_factor_ranking(effects, columns, "Title", "Subtitle.")
    assert [note.text for note in figure.layout.annotations] == ["Jensen-Shannon"]
    assert list(figure.layout.yaxis.ticktext) == ["depth", "solver"]
    assert list(figure.data[0].marker.symbol) == ["circle", "circle-open"]


# ------------------------------------------------------------------------------------- parts of studies, sizes


def test_nothing_finished_draws_nothing(tmp_path: Path) -> None:
    study = build_study(2, ("useful", "impacts", "tasks"), norm=["sn", "bn"], batch_size=[2, 16])
    assert _draw(load_study_records(write_study(tmp_path, study, only=lambda trial: False))) == []


@pytest.mark.parametrize("norm", ["sn", "sn[in,ln,bn,gn]", "bn"])
def test_one_trial_of_any_pool(tmp_path: Path, norm: str) -> None:
    study = build_study(1, ("useful", "impacts", "tasks"), norm=[norm])
    drawn = _draw(load_study_records(write_study(tmp_path, study)))
    assert drawn
    triangles = [trace for figure in drawn for trace in figure.data if trace.type == "scatterternary"]
    assert bool(triangles) == (norm == "sn")  # a triangle has three corners


def test_a_smaller_pool_stays_out_of_the_triangle(tmp_path: Path) -> None:
    study = build_study(1, ("impacts",), norm=["sn"], batch_size=[1, 4])
    records = load_study_records(write_study(tmp_path, study))
    figure = draw_triangles(records.switch, records.done, records.space, "batch_size", WHAT)
    assert figure is not None
    assert {trace.name for trace in figure.data} == {"B = 4"}


def test_figures_of_a_large_study_are_small(tmp_path: Path) -> None:
    """Of levels, that is: 3 depths, 7 levels of B and 30 epochs have 500 kB, whether of 21 trials or of 504."""
    factors = {"norm": ["sn"], "depth": [8, 20], "batch_size": [1, 2, 4, 8, 16, 32, 64]}
    records = load_study_records(write_study(tmp_path, build_study(1, **factors)))
    assert sum(len(figure.to_json()) for figure in _draw(records)) < 400_000
