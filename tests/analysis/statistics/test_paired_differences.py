from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from tests.analysis.estimates import estimate_mean, holds

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
    assert 0.01 <= sum(not holds(item, 0) for item in found) / DRAWS <= 0.09


def test_missing_pairs_are_counted_by_cause_and_every_cell_stays() -> None:
    trials = _table(gain=0.02)
    trials.loc[trials.eval("norm == 'bn' and depth == 20 and replicate == 1"), "state"] = "diverged"
    trials.loc[trials.eval("depth == 14 and replicate == 2"), "state"] = "planned"
    found = _compare(trials)
    assert found.missing == {"bn diverged": 1, "sn planned and bn planned": 1}
    assert (found.n_pairs, found.n_pairs_planned, found.n_cells) == (13, 15, 3)
    assert found.cells_missing == {"depth = 14": 1, "depth = 20": 1}
    assert (found.reference_diverged, found.other_diverged, found.empty_cells) == (0, 1, ())
    assert len(found.trials) == 26
    done = trials[trials["state"].eq("done")].pivot(index=["depth", "replicate"], columns="norm", values="val_accuracy")
    assert found.estimate.value == pytest.approx((done["sn"] - done["bn"]).groupby("depth").mean().mean())
    assert found.estimate.value == pytest.approx(float(np.mean(found.per_replicate)), abs=2e-3)


def test_each_cell_has_its_difference_at_an_adjusted_confidence() -> None:
    trials = _table(gain=0.02)
    trials.loc[trials["norm"].eq("sn") & trials["depth"].eq(8), "val_accuracy"] -= 0.06
    found = _compare(trials)
    assert [cell.name for cell in found.cells] == ["depth = 8", "depth = 14", "depth = 20"]
    assert [cell.estimate.value for cell in found.cells] == pytest.approx([-0.04, 0.02, 0.02], abs=0.01)
    wide = trials.pivot(index=["depth", "replicate"], columns="norm", values="val_accuracy")
    expected = estimate_mean((wide["sn"] - wide["bn"]).loc[8].to_numpy(), 1 - 0.05 / 3)
    assert (found.cells[0].estimate.low, found.cells[0].estimate.high) == pytest.approx((expected.low, expected.high))
    assert found.interaction is not None
    assert found.interaction.cell == 0
    assert found.interaction.p_value < 0.01
    assert _compare(trials[trials["depth"].eq(8)], factors=["norm"]).cells == ()


def _chance(trials: pd.DataFrame) -> pd.Series:
    return pd.Series(0.1, index=trials.index)


def test_a_level_that_diverged_everywhere_in_a_cell_counts_with_chance() -> None:
    trials = _table()
    trials.loc[trials.eval("norm == 'bn' and depth == 20"), "state"] = "diverged"
    found = _compare(trials, chance=_chance(trials))
    assert found.at_chance == {"bn": ["depth = 20"]}
    assert (found.n_cells, found.missing, found.other_diverged) == (3, {}, 5)
    own = trials.loc[trials.eval("norm == 'sn' and depth == 20"), "val_accuracy"].mean()
    assert found.cells[2].estimate.value == pytest.approx(own - 0.1)
    assert (found.n_at_chance, [cell.n_at_chance for cell in found.cells]) == (5, [0, 0, 5])
    assert _compare(trials).empty_cells == ("depth = 20",)  # numbers without a chance level have no such value


@pytest.mark.parametrize("state", ["failed", "planned", "done"])
def test_a_level_with_another_state_in_the_cell_does_not_count_with_chance(state: str) -> None:
    trials = _table()
    trials.loc[trials.eval("norm == 'bn' and depth == 20"), "state"] = "diverged"
    trials.loc[trials.eval("norm == 'bn' and depth == 20 and replicate == 0"), "state"] = state
    found = _compare(trials, chance=_chance(trials))
    assert found.at_chance == {}
    assert found.other_diverged == 4


def test_both_levels_may_diverge_in_a_pair() -> None:
    trials = _table()
    trials.loc[trials.eval("depth == 20 and replicate == 0"), "state"] = "diverged"
    trials.loc[trials.eval("norm == 'sn' and depth == 8 and replicate == 1"), "state"] = "diverged"
    trials.loc[trials.eval("norm == 'bn' and depth == 8 and replicate == 1"), "state"] = "failed"
    found = _compare(trials, chance=_chance(trials))
    assert found.missing == {"sn diverged and bn diverged": 1, "sn diverged and bn failed": 1}
    assert (found.reference_diverged, found.other_diverged) == (2, 1)


def test_an_empty_cell_is_named_and_bounded() -> None:
    trials = _table(gain=0.02)
    trials.loc[trials.eval("norm == 'bn' and depth == 20"), "state"] = "failed"
    found = _compare(trials, chance=_chance(trials))
    assert (found.n_cells, found.empty_cells) == (2, ("depth = 20",))
    own = trials.loc[trials.eval("norm == 'sn' and depth == 20"), "val_accuracy"].mean()
    assert found.worst is not None
    assert found.best is not None
    rest = 2 * (found.estimate.value or 0)
    assert found.worst.value == pytest.approx((rest + own - 1) / 3)
    assert found.best.value == pytest.approx((rest + own) / 3)
    assert _compare(trials).worst is None


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
