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
from study.analysis.report.effect_figures import RankingColumn, draw_factor_ranking, draw_forest
from study.analysis.report.figure_index import select_all_epochs, select_finished_choices
from study.analysis.report.layer_figures import (
    compute_layer_means,
    draw_layers_by_epoch,
    draw_triangles,
    draw_weight_maps,
)
from study.analysis.report.levels import LEVEL, choose_ends, keep_largest_pools, list_levels, split_by_level
from study.analysis.report.plot_style import TrialGroups
from study.analysis.report.registry import QUESTIONS, draw_figures
from study.analysis.report.report import Report
from study.analysis.report.score_figures import draw_metric_by_norm
from study.analysis.report.share_figures import draw_share_by_level, draw_share_by_place, draw_share_by_setting
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.config.choice_space import NORMALIZATION
from tests.analysis.conftest import Truth, build_study, write_study


@pytest.fixture(scope="module")
def records(finished: Report) -> StudyRecords:
    return finished.records


@pytest.fixture(scope="module")
def chosen(records: StudyRecords) -> pd.DataFrame:
    """The trials of one network depth, by B."""
    trials = select_finished_choices(records, "depth", "batch_size")
    return split_by_level(records, trials[trials["depth"].eq(8)], "batch_size")


@pytest.fixture(scope="module")
def drawn(finished: Report) -> list[go.Figure]:
    return [figure for figures in finished.figures.values() for figure in figures]


def _draw(records: StudyRecords) -> list[go.Figure]:
    questions = records.study.analysis.questions
    return [figure for name in questions for figure in draw_figures(name, records, QUESTIONS[name].answer(records))]


def _points(trace: Any) -> Iterator[list[Any]]:
    """The customdata of every point, or of every cell of a map."""
    for entry in () if trace.customdata is None else trace.customdata:
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
        assert numbers, f"{figure.layout.title.text}: no point's customdata starts with groups.number(rows)"
        assert numbers <= {-1, *range(len(meta["trials"]))}
        assert {row for group in meta["trials"] for row in group} <= set(records.trials.index)
        assert 20 < len(meta["alt"]) < 2000
        assert "nan" not in meta["alt"] + figure.layout.title.subtitle.text
        assert figure.layout.title.text


def test_figures_hold_lists_of_finite_numbers(drawn: list[go.Figure]) -> None:
    """W&B's page shows neither NaN nor the packed arrays that plotly makes of numpy arrays."""
    for figure in drawn:
        advice = f"{figure.layout.title.text}: make lists of arrays with .tolist(), and None of NaN"
        try:
            text = json.dumps(figure.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            pytest.fail(f"{advice} ({error})")
        assert "bdata" not in text, advice


def test_a_point_leads_to_the_trials_of_its_level(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_weight_maps(records.switch, chosen, records.space)
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
    figure = draw_weight_maps(records.switch, chosen, records.space)
    keys = chosen["key"][chosen["batch_size"].eq(16)]
    rows = records.switch[records.switch["key"].isin(keys) & records.switch["statistic"].eq("var")]
    expected = rows.groupby(["normalizer", "layer_index"])["weight"].mean().unstack()
    heatmap = figure.data[-1]  # the largest B, variance weights
    np.testing.assert_allclose(np.array(heatmap.z), expected.loc[list(heatmap.y)].to_numpy(), atol=1e-4)
    names = rows.sort_values("layer_index")["layer"].unique()
    assert [point[1] for point in heatmap.customdata[0]] == list(names)


def test_networks_with_unlike_layers_are_matched_by_stage_and_place(records: StudyRecords) -> None:
    trials = select_finished_choices(records, "batch_size")
    table = compute_layer_means(records.switch, trials, records.space)
    expected = np.mean([records.profiles[key] for key in trials["key"]], axis=0)[1, :, :3]  # variances: in, ln, bn
    rows = table[table["statistic"].eq("var")]
    np.testing.assert_allclose(rows[["in", "ln", "bn"]], expected)
    assert rows["layer"].tolist() == list(records.profiles.positions)


@pytest.mark.parametrize("order", [1, -1])
def test_only_networks_of_one_pool_are_averaged(order: int) -> None:
    rows = [("a", "in", 0.5), ("a", "ln", 0.5), ("b", "in", 0.2), ("b", "ln", 0.2), ("b", "bn", 0.6)]
    switch = pd.DataFrame(rows, columns=["key", "normalizer", "weight"])
    switch = switch.assign(statistic="mean", layer="bn1", layer_index=0, depth_fraction=0.0, stage=0)
    trials = pd.DataFrame({"key": ["a", "b"], "pool": ["in,ln", "in,ln,bn"]})[::order]
    (row,) = compute_layer_means(switch, trials, NORMALIZATION).to_dict("records")
    assert (row["in"], row["ln"], row["bn"]) == (0.2, 0.2, 0.6)


def test_a_triangle_has_a_point_a_layer(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_triangles(records.switch, chosen, records.space)
    assert figure is not None
    drawn = [trace for trace in figure.data if trace.customdata is not None]
    assert len(drawn) == 2 * 2  # B, statistic
    for trace in drawn:
        assert len(trace.a) == records.switch.query("key == @chosen['key'].iloc[0]")["layer"].nunique()
        np.testing.assert_allclose(np.sum([trace.a, trace.b, trace.c], axis=0), 1, atol=1e-3)
    assert drawn[0].marker.symbol != drawn[2].marker.symbol


def test_a_share_is_a_mean_over_replicates(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_share_by_level(records.switch, chosen, records.space, 0.95, "batch size")
    table = records.switch.merge(chosen[["key", "batch_size"]], on="key")
    means = table.groupby(["statistic", "normalizer", "batch_size"])["weight"].mean()
    for trace in figure.data:
        statistic = "mean" if trace.xaxis == "x" else "var"
        for place, value, high in zip(trace.x, trace.y, trace.error_y.array, strict=True):
            assert value == pytest.approx(means[statistic, trace.name, (2, 16)[place]], abs=1e-4)
            assert high > 0


def test_the_slider_moves_from_even_weights_to_the_last_epoch(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_layers_by_epoch(select_all_epochs(records, chosen), chosen, records.space, most=3)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "2", "4"]
    first, last = (step.args[0]["y"] for step in (slider.steps[0], slider.steps[-1]))
    np.testing.assert_allclose(np.concatenate(first), 1 / 3, atol=1e-3)
    assert last == [list(trace.y) for trace in figure.data]


def test_tasks_are_compared_with_their_heads(tmp_path: Path) -> None:
    study = build_study(2, ("tasks",), task=["classification", "segmentation"], dataset=["scenes"])
    records = load_study_records(write_study(tmp_path, study, Truth(bn_logit_of_heads=3.0)))
    weights = pd.concat([records.switch, records.heads])
    trials = split_by_level(records, name_settings(records.done), TOGETHER)
    figure = draw_share_by_setting(weights, trials, records.space, 0.95)
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
    assert len(draw_forest(effects, "Title", "Subtitle.").layout.shapes) == 1
    plain = draw_forest(effects, "Title", "Subtitle.", compared=False)
    assert not plain.layout.shapes
    assert "line" not in plain.layout.title.subtitle.text


def test_a_ranking_shows_factors_what_they_are_compared_with_and_the_margin() -> None:
    effects = [_effect("effect", "depth", 0.2, 0.15, 0.3), _effect("effect", "solver", 0.04, -0.02, 0.08),
               _effect("seed_distance", "another seed", 0.1, 0.09, 0.11)]  # fmt: skip
    kinds = {"all weights": "effect", "mean weights": "effect_mean"}
    columns = [
        RankingColumn(
            title="Jensen-Shannon", measures=kinds, margin=0.05, references=["effect_place", "seed_distance"]
        ),
        RankingColumn(title="Other", measures={"all weights": "effect_aitchison"}, margin=0.2),
    ]
    figure = draw_factor_ranking(effects, columns, "Title", "Subtitle.")
    assert [note.text for note in figure.layout.annotations] == ["Jensen-Shannon"]  # the other has no effect
    assert list(figure.layout.yaxis.ticktext) == ["depth", "solver", "another seed"]
    assert list(figure.data[0].marker.symbol) == ["circle", "circle-open"]  # above the margin, or not
    assert {shape.x0 for shape in figure.layout.shapes if shape.line.dash == "dot"} == {0.05}
    assert figure.layout.xaxis.type != "log"


def test_a_forest_shows_a_margin_where_there_is_one() -> None:
    effects = [_effect("effect_difference", "depth - solver", 0.1, 0.07, 0.13)]
    shapes = draw_forest(effects, "Title", "Subtitle.", lines={"effect_difference": 0.05}).layout.shapes
    assert [shape.x0 for shape in shapes] == [0, 0.05]


# ------------------------------------------------------------------------------------ levels of every factor


def test_levels_are_in_order(records: StudyRecords) -> None:
    trials = pd.DataFrame({"batch_size": [16, 2, 4], "initialization": ["xavier_uniform", "he_normal", "he_normal"]})
    numbers = split_by_level(records, trials, "batch_size")
    assert list_levels(numbers) == ["B = 2", "B = 4", "B = 16"]
    assert choose_ends(numbers) == ["B = 2", "B = 16"]
    assert list_levels(split_by_level(records, trials, "initialization")) == ["he_normal", "xavier_uniform"]


def test_none_is_a_level_like_any_other(records: StudyRecords) -> None:
    trials = pd.DataFrame({"train_samples": [None, 512.0]})
    assert list_levels(split_by_level(records, trials, "train_samples")) == [
        "train samples = None", "train samples = 512",
    ]  # fmt: skip


def test_every_factor_has_its_figures_the_strongest_first(finished: Report) -> None:
    groups = [figure.layout.meta.get("group") for figure in finished.figures["impacts"]]
    answer = finished.answers["impacts"]
    ranked = [effect.comparison for effect in answer.effects if effect.measure.name == "effect"]
    assert list(dict.fromkeys(filter(None, groups))) == [name.replace("_", " ") for name in ranked]
    titles = [figure.layout.title.text for figure in finished.figures["impacts"]]
    assert len(set(titles)) == len(titles)
    assert "place in a block" in titles[1]  # after the ranking, before all that layers chose
    assert "place in a block" not in " ".join(titles[2:])


def test_a_study_of_other_factors_has_the_same_figures(tmp_path: Path) -> None:
    study = build_study(3, ("impacts",), momentum=[0.0, 0.9], decay=["cosine", "step"])
    truth = Truth(bn_logit=lambda trial: 1.5 * (trial.config.decay == "step"))
    drawn = _draw(load_study_records(write_study(tmp_path, study, truth)))
    groups = [figure.layout.meta.get("group") for figure in drawn]
    assert list(dict.fromkeys(filter(None, groups))) == ["decay", "momentum"]
    assert not [figure for figure in drawn if "batch size" in figure.layout.title.text]


def test_in_a_study_of_blocks_levels_are_compared_at_the_base(tmp_path: Path) -> None:
    factors: Any = {"depth": [8, 14], "batch_size": [2, 16], "decay": ["cosine", "step"]}
    blocks = [["depth", "batch_size"], ["decay", "batch_size"]]
    records = load_study_records(write_study(tmp_path, build_study(2, ("impacts",), blocks, **factors)))
    for figure in _draw(records):
        if figure.layout.meta.get("group") == "decay":
            used = records.trials.loc[[row for group in figure.layout.meta["trials"] for row in group]]
            assert set(used["depth"]) == {8}
            assert set(used["decay"]) == {"cosine", "step"}


def test_shares_by_place(records: StudyRecords, chosen: pd.DataFrame) -> None:
    figure = draw_share_by_place(records.switch, chosen, records.space, 0.95, "batch size")
    assert figure is not None
    assert list(figure.layout.xaxis.ticktext) == ["stem", "norm1", "norm2", "shortcut"]
    keys = chosen["key"][chosen["batch_size"].eq(16)]
    rows = records.switch[records.switch["key"].isin(keys) & records.switch["statistic"].eq("var")]
    expected = rows[rows["normalizer"].eq("bn")].groupby("place")["weight"].mean()
    (trace,) = [each for each in figure.data if each.name == "bn" and (each.xaxis, each.yaxis) == ("x4", "y4")]
    drawn = {point[1]: value for point, value in zip(trace.customdata, trace.y, strict=True)}
    assert drawn == pytest.approx(expected.to_dict(), abs=1e-4)


def test_networks_with_one_place_have_no_figure_of_places(records: StudyRecords, chosen: pd.DataFrame) -> None:
    switch = records.switch.assign(place="norm")
    assert draw_share_by_place(switch, chosen, records.space, 0.95) is None


def test_a_missing_run_does_not_shift_the_mean_of_a_level(tmp_path: Path) -> None:
    """A cell with fewer replicates has the same weight as any other."""
    study = build_study(4, ("impacts",), depth=[8, 14], batch_size=[2, 16])
    truth = Truth(bn_logit=lambda trial: 3.0 * (trial.config.depth == 14), logit_noise=1e-3)
    records = load_study_records(write_study(
        tmp_path, study, truth, failed=lambda trial: trial.config.depth == 14 and trial.replicate > 1
    ))  # fmt: skip
    trials = split_by_level(records, select_finished_choices(records, "batch_size"), "batch_size")
    figure = draw_share_by_level(records.switch, trials, records.space, 0.95, "batch size")
    table = records.switch.merge(trials[["key", "batch_size"]], on="key")
    table = table[table["statistic"].eq("mean") & table["normalizer"].eq("bn") & table["batch_size"].eq(2)]
    expected = table.groupby(["trial_id", "key"])["weight"].mean().groupby("trial_id").mean().mean()
    (trace,) = [each for each in figure.data if each.name == "bn" and each.xaxis == "x"]
    assert trace.y[0] == pytest.approx(expected, abs=1e-4)


def test_a_level_shows_the_networks_with_its_largest_pool(tmp_path: Path) -> None:
    records = load_study_records(write_study(tmp_path, build_study(1, norm=["sn"], depth=[8, 14], batch_size=[1, 4])))
    by_depth = keep_largest_pools(split_by_level(records, records.done, "depth"))
    assert set(by_depth["batch_size"]) == {4}
    by_batch = keep_largest_pools(split_by_level(records, records.done, "batch_size"))
    assert list(by_batch[LEVEL].unique()) == ["B = 1", "B = 4"]


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
    trials = split_by_level(records, records.done, "batch_size")
    figure = draw_triangles(records.switch, trials, records.space)
    assert figure is not None
    assert {trace.name for trace in figure.data} == {"B = 4"}


def test_figures_of_a_large_study_are_small(tmp_path: Path) -> None:
    """Of levels, that is: 3 depths, 7 levels of B and 30 epochs have 500 kB, whether of 21 trials or of 504."""
    factors = {"norm": ["sn"], "depth": [8, 20], "batch_size": [1, 2, 4, 8, 16, 32, 64]}
    records = load_study_records(write_study(tmp_path, build_study(1, **factors)))
    assert sum(len(figure.to_json()) for figure in _draw(records)) < 400_000
