"""The ground of questions 2 and 3, on networks whose truth is known: how often verdicts err, and what rows hold."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from study.analysis.questions.cell_effects import cell_rows, format_cell_effects
from study.analysis.questions.choices import collect_choices, find_empty_cells
from study.analysis.questions.factor_effects import ChoiceDistances, judge_factors, measure_distances
from study.analysis.questions.factor_rows import SEEDS, effect_rows, share_rows, strongest_rows
from study.analysis.questions.factor_sentences import format_common_needs, format_empty_cells, format_factor_verdicts
from study.analysis.questions.impacts import compare_factors
from study.analysis.questions.layer_effects import format_layer_effects, layer_rows
from study.analysis.questions.verdicts import judge, judge_all
from study.analysis.records import StudyRecords
from study.analysis.statistics.distances import AITCHISON, TOTAL_VARIATION
from study.analysis.statistics.profiles import Profiles
from study.config.choice_space import NORMALIZATION

DRAWS = 200
CONFIDENCE = 0.95
MARGIN = 0.05
RECORDS = SimpleNamespace(confidence=CONFIDENCE)
FACTORS = ("depth", "batch_size", "initialization")
LEVELS = ((8, 14), (2, 16), ("he", "orthogonal"))
POSITIONS = ("stage 0, stem", "stage 1, norm1", "stage 1, norm2")


def _trials(replicates: int, cells: tuple[tuple[object, ...], ...] = tuple(product(*LEVELS))) -> pd.DataFrame:
    rows = [
        {**dict(zip(FACTORS, levels, strict=True)), "trial_id": f"cell{number}", "replicate": replicate,
         "key": f"cell{number}-r{replicate}", "state": "done"}
        for replicate in range(replicates)
        for number, levels in enumerate(cells)
    ]  # fmt: skip
    return pd.DataFrame(rows, index=range(100, 100 + len(rows)))  # as rows of a larger table


def _profiles(trials: pd.DataFrame, seed: int, noise: float = 0.3, **moves: float) -> Profiles:
    """What networks chose: the last levels move the logits by `moves`; seeds move them, in part all cells alike."""
    random = np.random.default_rng(seed)
    shape = (2, len(POSITIONS), 4)
    directions = np.random.default_rng(98).normal(size=(len(FACTORS), *shape))
    shared = 0.2 * random.normal(size=(trials["replicate"].max() + 1, *shape))
    logits = noise / 0.3 * shared[trials["replicate"].to_numpy()] + noise * random.normal(size=(len(trials), *shape))
    for name, levels, direction in zip(FACTORS, LEVELS, directions, strict=True):
        logits += moves.get(name, 0.0) * np.multiply.outer(trials[name].eq(levels[-1]).to_numpy(), direction)
    weights = np.exp(logits)
    weights /= weights.sum(axis=-1, keepdims=True)
    done = trials["state"].eq("done").to_numpy()
    return Profiles(positions=POSITIONS, networks=dict(zip(trials["key"][done], weights[done], strict=True)))


def _measure(trials: pd.DataFrame, seed: int = 0, noise: float = 0.3, **moves: float) -> ChoiceDistances:
    choices = collect_choices(_profiles(trials, seed, noise, **moves), trials, FACTORS, NORMALIZATION)
    return measure_distances(choices, MARGIN)


def _verdicts(draws: int, replicates: int = 3, **moves: float) -> tuple[list[dict[str, str]], list[str]]:
    """The verdicts on the factors, and on the paper's claim, in many studies."""
    found = [_measure(_trials(replicates), seed, **moves) for seed in range(draws)]
    factors = [{**judge_factors(each.claims(CONFIDENCE), CONFIDENCE)} for each in found]
    return factors, [judge_all(compare_factors(each, CONFIDENCE), CONFIDENCE) for each in found]  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------- verdicts


def test_without_any_effect_nothing_is_supported() -> None:
    factors, claims = _verdicts(DRAWS)
    assert sum("supported" in each.values() for each in factors) / DRAWS <= 0.05
    assert claims.count("supported") / DRAWS <= 0.05


def test_what_moves_the_choice_is_found_and_not_refuted() -> None:
    factors, claims = _verdicts(50, replicates=5, depth=1.0, batch_size=1.0)
    assert sum(each["depth"] == each["batch_size"] == "supported" for each in factors) / 50 >= 0.9
    assert sum(each["initialization"] == "supported" for each in factors) / 50 <= 0.1
    assert claims.count("supported") / 50 >= 0.9
    assert claims.count("not supported") == 0


def test_half_a_claim_is_not_supported() -> None:
    """The hardest case: depth does move the choice, and B does not."""
    _, claims = _verdicts(DRAWS, depth=1.5)
    assert claims.count("supported") / DRAWS <= 0.05


def test_a_strong_weak_factor_refutes() -> None:
    _, claims = _verdicts(30, replicates=5, initialization=1.5)
    assert claims.count("not supported") / 30 >= 0.8


def test_nothing_that_moves_is_refuted_with_little_noise() -> None:
    factors = judge_factors(_measure(_trials(5), noise=0.02).claims(CONFIDENCE), CONFIDENCE)
    assert dict(factors) == dict.fromkeys(FACTORS, "not supported")


def test_seeds_that_change_nothing_give_verdicts() -> None:
    distances = _measure(_trials(3), noise=0.0, depth=1.0)
    assert all(each.seeds_change_nothing for each in distances.moments.values())
    assert judge_factors(distances.claims(CONFIDENCE), CONFIDENCE) == {
        "depth": "supported", "batch_size": "not supported", "initialization": "not supported"
    }  # fmt: skip


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_give_numbers_at_most(replicates: int) -> None:
    distances = _measure(_trials(replicates), depth=3.0)
    rows = [*effect_rows(distances, CONFIDENCE), *share_rows(distances.choices, CONFIDENCE), *strongest_rows(distances)]
    assert all(row.estimate.low is None for row in rows)
    assert set(judge_factors(distances.claims(CONFIDENCE), CONFIDENCE).values()) == {"not enough evidence"}
    assert set(distances.claims(CONFIDENCE)) == set(FACTORS)
    assert bool(share_rows(distances.choices, CONFIDENCE)) == (replicates > 1)
    assert format_common_needs(distances.choices)[0].startswith("at least 3 replicates of every cell")


# -------------------------------------------------------------------------- levels between the ends, and cells


def _measure_batches(replicates: int, odd: float, **moves: float) -> ChoiceDistances:
    """B has four levels, of which the third alone moves the choice."""
    trials = _trials(replicates, tuple(product((8,), (2, 4, 8, 16), ("he", "orthogonal"))))
    shown = trials.assign(batch_size=trials["batch_size"].map(lambda level: 16 if level == 8 else 2))
    choices = collect_choices(_profiles(shown, 0, batch_size=odd, **moves), trials, FACTORS, NORMALIZATION)
    return measure_distances(choices, MARGIN)


def test_a_level_between_the_ends_can_move_the_choice_alone() -> None:
    distances = _measure_batches(8, odd=1.5)
    claims = distances.claims(CONFIDENCE)
    assert not claims["batch_size"].estimate.above(MARGIN)
    assert judge_factors(claims, CONFIDENCE) == {"batch_size": "supported", "initialization": "not supported"}
    assert judge_all(compare_factors(distances, CONFIDENCE), CONFIDENCE) == "supported"
    (row,) = [row for row in effect_rows(distances, CONFIDENCE) if row.measure.name == "effect_all_levels"]
    assert row.comparison == "batch_size"
    assert row.estimate.above(3 * MARGIN)
    assert len(row.trials) == 64  # of all levels


def test_a_level_between_the_ends_counts_beyond_the_verdict() -> None:
    """B = 8 alone moves the choice. By its ends, B would be the weaker factor, and move no layer and no cell."""
    distances = _measure_batches(8, odd=1.5, initialization=0.3)
    strongest = {row.comparison: row.estimate.value or 0.0 for row in strongest_rows(distances)}
    assert strongest["batch_size"] > 0.95
    layers = layer_rows(distances.choices, CONFIDENCE)
    (sentence,) = format_layer_effects(layers, ["batch_size"], CONFIDENCE)
    assert "batch_size 0 of 3; batch_size (all levels) 3 of 3 (" in sentence
    cells = {row.comparison: row.estimate for row in cell_rows(distances, CONFIDENCE)}
    for cell in ("he", "orthogonal"):
        assert cells[f"batch_size (all levels) at initialization = {cell}"].above(MARGIN)
        assert not cells[f"batch_size at initialization = {cell}"].above(MARGIN)


def _measure_initializations(replicates: int, odd: float, noise: float = 0.02) -> ChoiceDistances:
    """Of ten initializations, the last alone moves the choice."""
    names = ("he", *(f"other {number}" for number in range(8)), "orthogonal")
    trials = _trials(replicates, tuple(product((8, 14), (2,), names)))
    choices = collect_choices(_profiles(trials, 0, noise, initialization=odd), trials, FACTORS, NORMALIZATION)
    return measure_distances(choices, MARGIN)


def _describe(distances: ChoiceDistances) -> str:
    verdicts = judge_factors(distances.claims(CONFIDENCE), CONFIDENCE)
    return " ".join(format_factor_verdicts(cast("StudyRecords", RECORDS), distances, verdicts))


def test_one_of_many_names_can_move_the_choice_alone() -> None:
    distances = _measure_initializations(4, odd=0.22)
    claims = distances.claims(CONFIDENCE)
    assert claims["initialization"].estimate.below(MARGIN)  # the mean over all pairs dilutes it
    assert judge_factors(claims, CONFIDENCE) == {"depth": "not supported", "initialization": "supported"}
    (row,) = [row for row in effect_rows(distances, CONFIDENCE) if row.measure.name == "effect_widest_pair"]
    assert row.comparison.startswith("initialization: ")
    assert row.comparison.endswith(" and orthogonal")
    assert row.estimate.above(MARGIN)
    said = _describe(distances)
    assert "Factor initialization moves the choice, though only some of its levels may differ: by 0.0" in said
    assert f"{row.comparison.removeprefix('initialization: ')} are furthest apart, by 0." in said


def test_many_names_are_refuted_only_by_all_pairs() -> None:
    alike, unclear = _measure_initializations(4, odd=0.0), _measure_initializations(3, odd=0.22, noise=0.1)
    assert judge_factors(alike.claims(CONFIDENCE), CONFIDENCE)["initialization"] == "not supported"
    claim = unclear.claims(CONFIDENCE)["initialization"]
    assert judge(replace(claim, others=()), CONFIDENCE) == "not supported"  # what the mean alone would have said
    assert judge(claim, CONFIDENCE) == "not enough evidence"


def test_a_factor_that_moves_the_choice_in_one_cell_alone_is_said_to() -> None:
    trials = _trials(6)
    only = trials["depth"].eq(14) & trials["initialization"].eq("orthogonal")
    shown = trials.assign(batch_size=trials["batch_size"].where(only, 2))
    choices = collect_choices(_profiles(shown, 0, batch_size=1.5), trials, FACTORS, NORMALIZATION)
    distances = measure_distances(choices, MARGIN)
    rows = cell_rows(distances, CONFIDENCE)
    assert len(rows) == 3 * 4
    verdicts = judge_factors(distances.claims(CONFIDENCE), CONFIDENCE)
    said = {sentence.split()[1]: sentence for sentence in format_cell_effects(distances, rows, verdicts, CONFIDENCE)}
    assert "at depth = 14 and initialization = orthogonal and by" in said["batch_size"]
    alike = _measure(_trials(6), batch_size=1.0)
    assert not format_cell_effects(
        alike, cell_rows(alike, CONFIDENCE), judge_factors(alike.claims(CONFIDENCE), CONFIDENCE), CONFIDENCE
    )


# ----------------------------------------------------------------------------------------------- missing runs


def _lacking(*keys: str, state: str = "failed", replicates: int = 4) -> pd.DataFrame:
    trials = _trials(replicates)
    trials.loc[trials["key"].isin(keys), "state"] = state
    return trials


def _cell(number: int, replicates: int = 4) -> list[str]:
    return [f"cell{number}-r{replicate}" for replicate in range(replicates)]


def test_one_failed_run_hardly_changes_an_estimate() -> None:
    whole, lacking = (_measure(trials, depth=1.0).estimate(CONFIDENCE) for trials in (_trials(4), _lacking("cell0-r0")))
    for name in FACTORS:
        assert lacking[name].value == pytest.approx(whole[name].value, abs=0.03)


def test_a_factor_is_supported_in_spite_of_an_empty_cell_only_if_it_is_in_the_worst_case() -> None:
    weak, strong = (_measure(_lacking(*_cell(0)), depth=move).claims(CONFIDENCE)["depth"] for move in (0.25, 1.5))
    assert strong.can_support
    assert not strong.can_refute
    assert not weak.can_support
    whole = _measure(_trials(4), depth=0.25).claims(CONFIDENCE)["depth"]
    assert whole.can_support
    assert whole.can_refute


def test_a_factor_without_a_result_stays_in_the_family() -> None:
    """Two depths at one B: without the deeper cell, nothing is known of depth, and the claim about it stays open."""
    cells = ((8, 2, "he"), (8, 16, "he"), (8, 2, "orthogonal"), (14, 2, "he"))
    trials = _trials(4, cells)
    trials.loc[trials["trial_id"].eq("cell3"), "state"] = "failed"
    distances = _measure(trials, batch_size=3.0)
    claims = distances.claims(CONFIDENCE)
    assert list(claims)[-1] == "depth"
    assert (claims["depth"].estimate.value, claims["depth"].can_support, claims["depth"].can_refute) == (
        None, False, False
    )  # fmt: skip
    assert judge_factors(claims, CONFIDENCE)["depth"] == "not enough evidence"
    differences = compare_factors(distances, CONFIDENCE)
    assert set(differences) == {"depth - initialization", "batch_size - initialization"}
    assert judge_all(differences, CONFIDENCE) == "not enough evidence"
    (row,) = [row for row in effect_rows(distances, CONFIDENCE) if row.comparison == "depth"]
    assert (row.estimate.value, row.n_pairs, row.n_pairs_planned, row.missing) == (None, 0, 1, {"failed": 4})


def test_empty_cells_are_named() -> None:
    choices = _measure(_lacking(*(key for number in (1, 2, 4, 5, 7) for key in _cell(number)), "cell0-r0")).choices
    assert find_empty_cells(choices) == [1, 2, 4, 5, 7]
    (sentence,) = format_empty_cells(choices)
    assert sentence == (
        "No run has a result at depth = 8, batch_size = 2 and initialization = orthogonal, depth = 8, batch_size = 16 "
        "and initialization = he, depth = 14, batch_size = 2 and initialization = he and 2 more cells, so nothing is "
        "concluded that these could change."
    )
    (need,) = format_common_needs(choices)
    assert need.startswith("results at depth = 8, batch_size = 2 and initialization = orthogonal")
    assert format_empty_cells(_measure(_trials(3)).choices) == []


# ---------------------------------------------------------------------------------------------------- rows


def test_rows_name_their_trials() -> None:
    rows = {
        row.comparison: row for row in effect_rows(_measure(_trials(4)), CONFIDENCE) if row.measure.name == "effect"
    }
    assert rows["depth"].trials == list(range(100, 132))
    assert (rows["depth"].n_pairs, rows["depth"].n_pairs_planned, rows["depth"].missing) == (4, 4, {})


def test_what_did_not_finish_is_counted_in_its_rows() -> None:
    trials = _trials(4)
    states = {"cell0-r1": "diverged", "cell0-r2": "diverged", "cell0-r0": "failed", "cell3-r3": "pruned"}
    trials["state"] = trials["key"].map(states).fillna("done")
    (row,) = [
        row
        for row in effect_rows(_measure(trials), CONFIDENCE)
        if (row.measure.name, row.comparison) == ("effect", "depth")
    ]
    assert row.missing == {"diverged": 2, "failed": 1, "pruned": 1}
    assert len(row.trials) == 28
    assert not {100, 108, 116} & set(row.trials)
    assert row.n_pairs == 4


def test_every_kind_of_displacement_has_its_row() -> None:
    distances = _measure(_trials(4), depth=1.0)
    rows = effect_rows(distances, CONFIDENCE)
    kinds = {row.measure.name: [] for row in rows}
    for row in rows:
        kinds[row.measure.name].append(row.comparison)
    everything = {
        "effect",
        "effect_relative",
        "effect_mean",
        "effect_var",
        "effect_aitchison",
        "effect_total_variation",
    }
    assert {name for name, compared in kinds.items() if set(compared) == set(FACTORS)} == everything
    assert kinds["seed_distance"] == [SEEDS]
    assert sorted(kinds["effect_per_doubling"]) == ["batch_size", "depth"]
    assert kinds["effect"][0] == "depth"  # the strongest comes first
    values = {(row.measure.name, row.comparison): row.estimate.value or 0.0 for row in rows}
    seeds = values["seed_distance", SEEDS]
    assert values["effect_relative", "depth"] == pytest.approx(values["effect", "depth"] / seeds, rel=0.15)
    axes = [values[f"effect_{axis}", "depth"] ** 2 for axis in ("mean", "var")]
    assert values["effect", "depth"] ** 2 == pytest.approx(np.mean(axes))


@pytest.mark.parametrize("distance", [AITCHISON, TOTAL_VARIATION], ids=lambda each: each.name)
def test_other_distances_find_what_is_there(distance: object) -> None:
    choices = _measure(_trials(5), depth=1.5).choices
    claims = measure_distances(choices, MARGIN, distance).claims(CONFIDENCE)  # type: ignore[arg-type]
    assert judge_factors(claims, CONFIDENCE)["depth"] == "supported"
    assert not claims["initialization"].estimate.above(claims["initialization"].margin)


def test_the_strongest_has_its_rows() -> None:
    rows = strongest_rows(_measure(_trials(4), depth=2.0))
    assert rows[0].comparison == "depth"
    assert sum(row.estimate.value or 0 for row in rows) == pytest.approx(1)
    assert strongest_rows(_measure(_trials(4, ((8, 2, "he"), (14, 2, "he"))))) == []  # one factor has no rival


def test_every_share_has_its_row_and_factors_are_ranked() -> None:
    rows = share_rows(_measure(_trials(6), depth=1.0).choices, CONFIDENCE)
    whole = [row for row in rows if row.measure.name == "share_of_variance"]
    assert whole[0].comparison == "depth"
    assert [row.comparison for row in whole][-2:] == ["replicate", "residual"]
    assert whole[0].estimate.above(0)
    assert whole[0].p_value is not None
    assert whole[0].p_value <= 0.15  # of six replicates: three times 2 / 2^6, or more by chance
    assert [row.estimate.low for row in whole[-2:]] == [None, None]
    layers = [row.comparison for row in rows if row.measure.name == "layer_share"]
    assert len(layers) == 6
    assert "depth, stage 1" in layers


def test_shares_are_computed_over_replicates_in_which_no_cell_is_missing() -> None:
    choices = _measure(_lacking("cell3-r1"), depth=1.0).choices
    assert {row.estimate.n for row in share_rows(choices, CONFIDENCE)} == {3}
    assert share_rows(_measure(_lacking(*_cell(3))).choices, CONFIDENCE) == []


# --------------------------------------------------------------------------------------------------- designs


def test_in_blocks_a_factor_is_measured_where_it_varies_alone() -> None:
    cells = ((8, 2, "he"), (8, 16, "he"), (14, 2, "he"), (14, 16, "he"), (8, 2, "orthogonal"))
    distances = _measure(_trials(4, cells), depth=1.0)
    assert {name: each.n_planned for name, each in distances.moments.items()} == {
        "depth": 2, "batch_size": 2, "initialization": 1
    }  # fmt: skip
    (row,) = [row for row in effect_rows(distances, CONFIDENCE)
              if (row.measure.name, row.comparison) == ("effect", "initialization")]  # fmt: skip
    assert set(distances.choices.states.set_index("row")["cell"].loc[list(row.trials)]) == {0, 4}


def test_cells_drawn_at_random_by_a_search_have_nothing_to_compare() -> None:
    cells = ((8, 2, "he"), (14, 16, "he"), (8, 16, "orthogonal"))
    distances = _measure(_trials(3, cells))
    assert (dict(distances.moments), distances.claims(CONFIDENCE)) == ({}, {})
    assert effect_rows(distances, CONFIDENCE) == strongest_rows(distances) == []
    assert share_rows(distances.choices, CONFIDENCE) == []


def test_no_trial_and_no_profile_have_nothing_to_compare() -> None:
    for trials, profiles in ((_trials(1)[:0], Profiles(networks={})), (_trials(3), Profiles(networks={}))):
        distances = measure_distances(collect_choices(profiles, trials, FACTORS, NORMALIZATION), MARGIN)
        assert distances.choices.n_replicates == 0
        assert all(claim.estimate.value is None for claim in distances.claims(CONFIDENCE).values())
        assert all(row.estimate.value is None for row in effect_rows(distances, CONFIDENCE))


def test_the_order_of_trials_does_not_matter() -> None:
    trials = _lacking("cell3-r1")
    profiles = _profiles(trials, 0, depth=1.0)
    first, second = (
        measure_distances(collect_choices(profiles, rows, FACTORS, NORMALIZATION), MARGIN).estimate(CONFIDENCE)
        for rows in (trials, trials.sample(frac=1, random_state=1))
    )
    for name, estimate in first.items():
        assert (second[name].value, second[name].low) == pytest.approx((estimate.value, estimate.low))
