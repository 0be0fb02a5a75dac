from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.analysis.statistics import (
    DEPTH_GRID,
    Floats,
    PairedDifference,
    complete_block,
    count_cell_pairs,
    depth_profiles,
    effect_contrast,
    factor_distances,
    factor_effect,
    paired_differences,
    profile_distance,
    replicate_interval,
    replicates_needed,
)

DRAWS = 200


# --------------------------------------------------------------------------------------------- intervals


def test_interval_is_student_t() -> None:
    values = [0.1, 0.3, 0.2, 0.6]
    low, high = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    found = replicate_interval(values, 0.9)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.3, low, high, 4))


@pytest.mark.parametrize("values", [[0.5], [0.7, 0.7, 0.7]], ids=["one replicate", "identical replicates"])
def test_no_interval_without_a_spread(values: list[float]) -> None:
    found = replicate_interval(values, 0.95)
    assert found.value == pytest.approx(values[0])
    assert found.low is None
    assert not found.above(0)
    assert not found.below(1)


def test_no_value_without_replicates() -> None:
    assert replicate_interval([], 0.95).value is None


def test_interval_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        replicate_interval([0.1, float("nan")], 0.95)


def test_interval_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = sum(_contains(replicate_interval(random.normal(2, 3, 4), 0.95), 2) for _ in range(DRAWS))
    assert 0.91 <= covered / DRAWS <= 0.99


def test_replicates_needed_reaches_the_target() -> None:
    half_width = stats.t.ppf(0.975, 4) * 0.01 / np.sqrt(5)
    needed = replicates_needed(half_width, 0.004, 5, 0.95)
    assert needed is not None
    assert stats.t.ppf(0.975, needed - 1) * 0.01 / np.sqrt(needed) <= 0.004
    assert stats.t.ppf(0.975, needed - 2) * 0.01 / np.sqrt(needed - 1) > 0.004
    assert replicates_needed(half_width, 1e-9, 5, 0.95) is None


# ------------------------------------------------------------------------------------- paired differences


def _table(replicates: int = 5, gain: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """2 norms x 3 depths; replicates and depths differ by far more than the norms do."""
    random = np.random.default_rng(seed)
    shared, noise = random.normal(0, 0.1, replicates), random.normal(0, 0.005, (2, 3, replicates))
    rows = [
        (norm, depth, r, "done", 0.5 + 0.1 * d + shared[r] + gain * (norm == "sn") + noise[n, d, r])
        for (n, norm), (d, depth), r in product(enumerate(("sn", "bn")), enumerate((8, 14, 20)), range(replicates))
    ]
    return pd.DataFrame(rows, columns=["norm", "depth", "replicate", "state", "val_accuracy"])


def _compare(trials: pd.DataFrame, **changes: Any) -> PairedDifference:
    settings: dict[str, Any] = {"factors": ["norm", "depth"], "factor": "norm", "reference": "sn", "other": "bn",
                                "metric": "val_accuracy", "confidence": 0.95}  # fmt: skip
    return paired_differences(trials, **{**settings, **changes})


def test_pairing_cancels_what_replicates_and_cells_share() -> None:
    found = _compare(_table(gain=0.02))
    assert found.estimate.above(0.01)
    assert found.estimate.below(0.03)
    assert (found.n_pairs, found.n_pairs_planned, found.n_cells, found.estimate.n) == (15, 15, 3, 5)


def test_no_effect_gives_five_percent_false_positives() -> None:
    found = [_compare(_table(replicates=3, seed=seed)).estimate for seed in range(DRAWS)]
    assert 0.01 <= sum(not _contains(item, 0) for item in found) / DRAWS <= 0.09


def test_missing_pairs_are_counted_by_cause_and_leave_every_replicate() -> None:
    trials = _table(gain=0.02)
    trials.loc[trials.eval("norm == 'bn' and depth == 20 and replicate == 1"), "state"] = "diverged"
    trials.loc[trials.eval("depth == 14 and replicate == 2"), "state"] = "planned"
    found = _compare(trials)
    assert found.missing == {"bn diverged": 1, "sn planned and bn planned": 1}
    # Four replicates hold two cells each (8 comparisons with more), or five hold one.
    assert (found.n_pairs_planned, found.n_cells_planned) == (15, 3)
    assert found.n_pairs == found.n_cells * found.estimate.n
    values = trials.pivot_table(index="depth", columns=["replicate", "norm"], values="val_accuracy")
    assert all(np.isfinite(found.per_replicate))
    assert found.estimate.value == pytest.approx(float(np.mean(found.per_replicate)))
    assert len(values) == 3


def test_a_diverged_cell_is_told_apart_from_a_missing_one() -> None:
    trials = _table()
    trials.loc[trials.eval("norm == 'bn' and depth == 20"), "state"] = "diverged"
    found = _compare(trials)
    assert (found.n_cells, found.n_cells_diverged, found.n_cells_planned) == (2, 1, 3)


def test_a_done_trial_without_the_metric_is_missing() -> None:
    trials = _table()
    trials.loc[0, "val_accuracy"] = np.nan
    assert _compare(trials).missing == {"sn without val_accuracy": 1}


def test_a_metric_of_a_diverged_trial_does_not_count() -> None:
    trials = _table()
    trials.loc[trials["norm"].eq("bn"), "state"] = "diverged"
    assert _compare(trials).estimate.value is None


def test_no_other_factor_and_no_other_level() -> None:
    trials = _table()
    alone = trials[trials["depth"].eq(8)]
    assert _compare(alone, factors=["norm"]).n_cells == 1
    assert _compare(alone, other="gn").n_pairs_planned == 0


def test_levels_of_a_factor_may_be_numbers() -> None:
    found = _compare(_table(), factor="depth", reference=20, other=8)
    assert found.estimate.value == pytest.approx(0.2, abs=0.01)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_complete_block_is_complete(cells: int, replicates: int, data: st.DataObject) -> None:
    flat = data.draw(st.lists(st.booleans(), min_size=cells * replicates, max_size=cells * replicates))
    present = np.array(flat).reshape(cells, replicates)
    rows, columns = complete_block(present)
    assert present[np.ix_(rows, columns)].all()
    assert bool(rows.size and columns.size) == present.any()


def test_complete_block_prefers_replicates_over_a_few_cells() -> None:
    present = np.ones((12, 3), dtype=bool)
    present[:1, 2] = False
    rows, columns = complete_block(present)
    assert (rows.size, columns.size) == (11, 3)
    present[:, 2] = False
    present[0, 2] = True  # a replicate that has just begun
    rows, columns = complete_block(present)
    assert (rows.size, columns.size) == (12, 2)


# ---------------------------------------------------------------------------------------------- profiles


def _layers(weights: dict[float, tuple[float, ...]], pool: tuple[str, ...] = ("in", "ln", "bn")) -> pd.DataFrame:
    rows = [(depth, statistic, name, weight) for depth, row in weights.items() for statistic in ("mean", "var")
            for name, weight in zip(pool, row, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["depth_fraction", "statistic", "normalizer", "weight"])


def _profile(layers: pd.DataFrame) -> Floats:
    return depth_profiles(layers.assign(key="one"))["one"]


def test_profiles_of_many_networks_are_those_of_each() -> None:
    shallow, deep = _layers({0.0: (0.2, 0.3, 0.5)}), _layers({0.5: (1.0, 0.0, 0.0), 0.2: (0.0, 0.5, 0.5)})
    both = depth_profiles(pd.concat([deep.assign(key="b"), shallow.assign(key="B")]).sample(frac=1, random_state=0))
    assert set(both) == {"b", "B"}
    np.testing.assert_array_equal(both["b"], _profile(deep))
    np.testing.assert_array_equal(both["B"], _profile(shallow))
    assert depth_profiles(deep.assign(key="b")[:0]) == {}


def test_profiles_of_different_depth_align() -> None:
    shallow = _profile(_layers({0.0: (0.2, 0.3, 0.5), 1.0: (0.6, 0.3, 0.1)}))
    deep = _profile(_layers({d: (0.2 + 0.4 * d, 0.3, 0.5 - 0.4 * d) for d in np.linspace(0, 1, 31)}))
    assert shallow.shape == (2, DEPTH_GRID.size, 4)
    np.testing.assert_allclose(shallow, deep, atol=1e-12)
    np.testing.assert_allclose(shallow.sum(-1), 1)


def test_a_profile_of_one_layer_and_of_a_smaller_pool() -> None:
    profile = _profile(_layers({0.5: (0.25, 0.75)}, pool=("in", "ln")))
    np.testing.assert_allclose(profile, np.broadcast_to([0.25, 0.75, 0, 0], profile.shape))


def test_distance_runs_from_zero_to_one() -> None:
    ones = [_profile(_layers({0.5: weights})) for weights in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))]
    np.testing.assert_allclose(profile_distance(ones[0], ones[1]), [1, 1])
    np.testing.assert_allclose(profile_distance(ones[0], ones[0]), [0, 0])


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_distance_is_symmetric_and_finite_for_almost_equal_profiles(raw: list[float]) -> None:
    first, second = (np.broadcast_to(np.array(part) / sum(part), (2, 11, 3)) for part in (raw[:3], raw[3:]))
    np.testing.assert_allclose(profile_distance(first, second), profile_distance(second, first))
    assert np.isfinite(profile_distance(first, first * (1 + 1e-16))).all()


# ---------------------------------------------------------------------------------------- factor effects


def _profiles(replicates: int, moves: tuple[float, float], seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """2 x 2 cells; levels of `a` and `b` move the logits by `moves`; seeds move them, in part in all cells alike."""
    random = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=(2, 2, 5, 3))
    cells = pd.DataFrame(list(product((0, 1), (0, 1))), columns=["a", "b"])
    shared = 0.2 * random.normal(size=(replicates, 2, 1, 3))
    logits = np.stack([
        shared + 0.3 * random.normal(size=(replicates, 2, 1, 3)) + 0.2 * random.normal(size=(replicates, 2, 5, 3))
        + moves[0] * a * direction[0] + moves[1] * b * direction[1]
        for a, b in cells.to_numpy()
    ])  # fmt: skip
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True), cells


def _effect(replicates: int, move: float, seed: int) -> Any:
    return factor_effect(factor_distances(*_profiles(replicates, (move, 0.0), seed), "a"), 0.95)


def test_a_planted_effect_is_found() -> None:
    profiles, cells = _profiles(5, (1.5, 0.0), 1)
    strong, weak = (factor_distances(profiles, cells, name) for name in ("a", "b"))
    assert factor_effect(strong, 0.95).above(1.5)
    assert not factor_effect(weak, 0.95).above(1)
    assert effect_contrast(strong, weak, 0.95).above(1)
    assert factor_effect(strong, 0.95, "mean").above(1)


@pytest.mark.parametrize("replicates", [3, 5])
def test_no_effect_is_one_with_few_false_positives(replicates: int) -> None:
    found = [_effect(replicates, 0.0, seed) for seed in range(DRAWS)]
    assert np.mean([np.log(item.value) for item in found]) == pytest.approx(0, abs=0.02)
    assert sum(not _contains(item, 1) for item in found) / DRAWS <= 0.06


def test_interval_of_an_effect_covers_the_truth() -> None:
    truth = _effect(150, 0.6, 12345).value
    covered = sum(_contains(_effect(5, 0.6, seed), truth) for seed in range(DRAWS))
    assert truth > 1.2
    assert covered / DRAWS >= 0.92


def test_no_interval_below_three_replicates() -> None:
    assert _effect(1, 1.0, 0).value is None
    assert _effect(2, 1.0, 0).value > 1
    assert _effect(2, 1.0, 0).low is None


def test_no_effect_to_measure_where_seeds_move_nothing() -> None:
    profiles, cells = _profiles(4, (1.0, 0.0), 0)
    assert factor_effect(factor_distances(profiles[:, :1].repeat(4, axis=1), cells, "a"), 0.95).value is None


def test_distances_need_cells_that_differ_in_the_factor_alone() -> None:
    profiles, cells = _profiles(3, (1.0, 0.0), 0)
    with pytest.raises(ValueError, match="differ in it alone"):
        factor_distances(profiles[[0, 3]], cells.iloc[[0, 3]], "a")


def test_cells_at_the_same_level_are_no_pair() -> None:
    cells = pd.DataFrame({"task": ["a", "b", "b", "b"], "dataset": ["x", "x", "x", "y"]})
    assert (count_cell_pairs(cells, "task"), count_cell_pairs(cells, "dataset")) == (2, 2)


def _contains(item: Any, truth: float) -> bool:
    return bool(item.low <= truth <= item.high)
