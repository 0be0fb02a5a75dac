from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.analysis.statistics.intervals import complete_block
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences

DRAWS = 200


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
    assert 0.01 <= sum(not item.contains(0) for item in found) / DRAWS <= 0.09


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
