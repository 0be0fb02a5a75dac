"""The ground of questions 2 and 3, on made-up networks whose truth is known; and how often its verdicts err."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from study.analysis.questions.sentences import format_common_needs, format_replicates_for_ratio

from study.analysis.questions import impacts, tasks
from study.analysis.questions.factor_effects import (
    ChoiceDistances,
    adjust_ratio_p_values,
    effect_rows,
    find_distinguished,
    measure_distances,
    share_rows,
)
from study.analysis.statistics.intervals import Estimate, Floats, ratio_p_value
from study.analysis.statistics.profiles import comparable_pairs, factor_distances, factor_effect, squared_distances
from study.config.choice_space import NORMALIZATION

DRAWS = 200
FACTORS = ["depth", "batch_size", "initialization"]


def _trials(replicates: int) -> pd.DataFrame:
    rows = [
        {**dict(zip(FACTORS, levels, strict=True)), "trial_id": f"cell{number}", "replicate": replicate,
         "key": f"cell{number}-r{replicate}", "state": "done"}
        for replicate in range(replicates)
        for number, levels in enumerate(product((8, 14), (2, 16), ("he", "orthogonal")))
    ]  # fmt: skip
    return pd.DataFrame(rows, index=range(100, 100 + len(rows)))  # as rows of a larger table


def _profiles(trials: pd.DataFrame, seed: int, depths: int = 3, **moves: float) -> dict[str, Floats]:
    """What networks chose: levels move the logits by `moves`, and so do seeds, in part those of a replicate alike."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(98).normal(size=(len(FACTORS), 2, depths, 3))
    shared = 0.2 * random.normal(size=(trials["replicate"].max() + 1, 2, depths, 3))
    logits = shared[trials["replicate"].to_numpy()] + 0.4 * random.normal(size=(len(trials), 2, depths, 3))
    for name, direction in zip(FACTORS, directions, strict=True):
        logits += moves.get(name, 0.0) * np.multiply.outer(trials[name].eq(trials[name].iloc[-1]).to_numpy(), direction)
    weights = np.exp(logits)
    return dict(zip(trials["key"], weights / weights.sum(axis=-1, keepdims=True), strict=True))


def _measure(replicates: int = 3, seed: int = 0, **moves: float) -> ChoiceDistances:
    trials = _trials(replicates)
    return measure_distances(_profiles(trials, seed, **moves), trials, FACTORS, NORMALIZATION)


# ------------------------------------------------------------------------------------------------- verdicts


def _verdicts(draws: int, replicates: int = 3, **moves: float) -> tuple[list[str], list[str]]:
    """Of both questions, over many studies; the third asks of depth and B as if they were task and data set."""
    trials = _trials(replicates)
    cells = trials[FACTORS][:8]
    pairs = {name: comparable_pairs(cells, name) for name in FACTORS}
    found: tuple[list[str], list[str]] = ([], [])
    for seed in range(draws):
        networks = np.array(list(_profiles(trials, seed, **moves).values()))
        distances = squared_distances(networks.reshape(replicates, 8, *networks.shape[1:]).swapaxes(0, 1))
        factors = {name: factor_distances(distances, pairs[name]) for name in FACTORS}
        apart = {name: factor_effect(factors[name], 0.95) for name in ("depth", "batch_size")}
        found[0].append(impacts.decide(impacts.contrast_effects(factors, 0.95), 0.95, covered=True))
        found[1].append(tasks.decide(apart, 0.95, covered=True))
    return found


def test_without_any_effect_nothing_is_supported() -> None:
    of_impacts, of_tasks = _verdicts(DRAWS)
    assert of_impacts.count("supported") / DRAWS <= 0.05
    assert of_tasks.count("supported") / DRAWS <= 0.05


def test_a_claim_that_holds_is_not_refuted() -> None:
    of_impacts, of_tasks = _verdicts(DRAWS, depth=1.0, batch_size=1.0)
    assert of_impacts.count("not supported") / DRAWS <= 0.05
    assert of_tasks.count("not supported") / DRAWS <= 0.05


def test_a_claim_that_holds_is_found() -> None:
    of_impacts, of_tasks = _verdicts(50, replicates=5, depth=1.0, batch_size=1.0)
    assert of_impacts.count("supported") / 50 >= 0.9
    assert of_tasks.count("supported") / 50 >= 0.9


def test_half_a_claim_is_not_supported() -> None:
    """The hardest case: depth does move the choice, and B does not."""
    of_impacts, _ = _verdicts(DRAWS, depth=1.5)
    assert of_impacts.count("supported") / DRAWS <= 0.05


def test_a_strong_weak_factor_refutes() -> None:
    of_impacts, _ = _verdicts(30, initialization=1.5)
    assert of_impacts.count("not supported") / 30 >= 0.8


# ----------------------------------------------------------------------------------------------- many tests


def test_a_p_value_says_what_its_interval_says() -> None:
    ratio = Estimate(value=2.0, low=1.0, high=4.0, n=4)
    assert ratio_p_value(ratio, 1.0, 0.95) == pytest.approx(0.025)
    assert ratio_p_value(ratio, 2.0, 0.95) == pytest.approx(0.5)
    assert ratio_p_value(ratio, 4.0, 0.95) == pytest.approx(0.975)
    assert ratio_p_value(Estimate(value=2.0, n=1), 1.0, 0.95) is None


def test_of_many_ratios_one_needs_more_to_tell() -> None:
    just = Estimate(value=2.0, low=1.01, high=4.0, n=4)
    none = Estimate(value=1.5, n=2)  # no interval, and yet one of the family
    assert find_distinguished({"a": just}, 1, 0.95) == ["a"]
    assert find_distinguished({"a": just, "b": none}, 1, 0.95) == []
    assert (
        adjust_ratio_p_values({"b": none}, 1, 0.95)
        == adjust_ratio_p_values({"b": none}, 1, 0.95, above=False)
        == {"b": 1.0}
    )
    assert find_distinguished({"a": Estimate(value=0.5, low=0.3, high=0.9, n=4)}, 1, 0.95, above=False) == ["a"]


# ---------------------------------------------------------------------------------------------------- rows


def _lacking(**states: str) -> ChoiceDistances:
    """Four replicates of which those of some keys have another state, and no profile."""
    trials = _trials(4)
    trials["state"] = [states.get(key.replace("-", "_"), "done") for key in trials["key"]]
    done = trials[trials["state"].eq("done")]
    profiles = {key: item for key, item in _profiles(trials, 0, 11, depth=1.0).items() if key in set(done["key"])}
    return measure_distances(profiles, trials, FACTORS, NORMALIZATION)


def test_rows_name_their_trials() -> None:
    rows = {row.comparison: row for row in effect_rows(_lacking(), 0.95) if row.measure.name == "effect"}
    assert rows["depth"].trials == list(range(100, 132))
    assert (rows["depth"].n_pairs, rows["depth"].n_pairs_planned, rows["depth"].missing) == (4, 4, {})


def test_what_did_not_finish_is_counted_in_its_rows() -> None:
    distances = _lacking(cell0_r1="diverged", cell0_r2="diverged", cell0_r0="failed", cell3_r3="pruned")
    row = next(
        row for row in effect_rows(distances, 0.95) if row.measure.name == "effect" and row.comparison == "depth"
    )
    assert sum(row.missing.values()) + len(row.trials) == 32
    assert {state: row.missing[state] for state in ("diverged", "failed", "pruned")} == {
        "diverged": 2, "failed": 1, "pruned": 1
    }  # fmt: skip
    assert not {100, 108, 116} & set(row.trials)


def test_every_share_has_its_row_and_factors_are_ranked() -> None:
    rows = share_rows(_lacking(), 0.95)
    whole = [row for row in rows if row.measure.name == "share_of_variance"]
    assert whole[0].comparison == "depth"
    assert [row.comparison for row in whole][-2:] == ["replicate", "residual"]
    assert whole[0].estimate.above(0)
    assert whole[0].p_value is not None
    assert whole[0].p_value <= 0.01
    assert [row.estimate.low for row in whole[-2:]] == [None, None]
    layers = [row.comparison for row in rows if row.measure.name == "layer_share"]
    assert len(layers) == 9
    assert "depth, early layers" in layers


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_give_no_interval(replicates: int) -> None:
    trials = _trials(replicates)
    distances = measure_distances(_profiles(trials, 0, 11), trials, FACTORS, NORMALIZATION)
    rows = [*effect_rows(distances, 0.95), *share_rows(distances, 0.95)]
    assert all(row.estimate.low is None for row in rows)
    assert bool(share_rows(distances, 0.95)) == (replicates > 1)


# --------------------------------------------------------------------------------------------------- needs


def test_needs_name_the_cells_that_lack_most() -> None:
    states = {f"cell{cell}_r{replicate}": "failed" for cell in (1, 2, 4, 5, 7) for replicate in range(4)}
    del states["cell5_r0"]
    (need,) = format_common_needs(_lacking(**states))
    assert need == (
        "results in more cells (3 of 8 complete): 4 more replicates at depth = 8, batch_size = 2 and initialization = "
        "orthogonal; 4 more replicates at depth = 8, batch_size = 16 and initialization = he; 4 more replicates at "
        "depth = 14, batch_size = 2 and initialization = he; and 2 more cells"
    )


def test_needs_say_how_many_more_replicates_and_where() -> None:
    wide = Estimate(value=1.3, low=0.6, high=2.8, n=3)
    (need,) = format_replicates_for_ratio(_measure(), ["depth"], wide, 0.95)
    assert need.startswith("about ")
    assert need.endswith("more replicates at every cell, at the spread seen so far")
    trials = _trials(3)
    block = trials[trials["initialization"].eq("he") | trials["depth"].eq(8)]
    distances = measure_distances(_profiles(trials, 0), block, FACTORS, NORMALIZATION)
    assert (
        "more replicates at initialization = he, at" in format_replicates_for_ratio(distances, ["depth"], wide, 0.95)[0]
    )


@pytest.mark.parametrize("settled", [Estimate(), Estimate(value=2.0, n=2)])
def test_no_number_of_replicates_without_an_interval(settled: Any) -> None:
    assert format_replicates_for_ratio(_measure(), ["depth"], settled, 0.95) == []
