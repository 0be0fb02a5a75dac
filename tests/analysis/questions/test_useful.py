"""Question 1's rule on frames of known truth: how often it errs, and that it finds what was planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from study.analysis.questions.answers import difference_effects, refuted
from study.analysis.questions.useful import decide
from study.analysis.statistics.intervals import bootstrap_interval, replicate_interval
from study.analysis.statistics.measures import build_measures
from study.analysis.statistics.paired_differences import PairedDifference, paired_differences
from study.config.schema import SCORE_MARGIN

DRAWS = 200
OTHERS = ("bn", "sn-uniform", "sn-shared")


def _compare(seed: int, gains: dict[str, float], replicates: int = 5, noise: float = 0.003) -> list[PairedDifference]:
    """sn, better by `gains`, against each; sn's own noise is in every difference."""
    random = np.random.default_rng([3, seed])
    own = random.normal(0, noise, replicates)
    return [_difference(norm, gain + own - random.normal(0, noise, replicates)) for norm, gain in gains.items()]


def _difference(norm: str, values: NDArray[np.float64]) -> PairedDifference:
    """As `paired_differences` makes it of a cell that is complete."""
    return PairedDifference(
        reference="sn", other=norm, estimate=replicate_interval(values, 0.95), per_replicate=tuple(values.tolist()),
        n_pairs=values.size, n_pairs_planned=values.size, n_cells=1, n_cells_diverged=0, n_cells_planned=1, missing={},
    )  # fmt: skip


def _share(verdict: str, gains: dict[str, float], draws: int = DRAWS) -> float:
    return sum(decide(_compare(seed, gains), 0.95) == verdict for seed in range(draws)) / draws


def test_without_a_gain_support_is_rarer_than_five_percent() -> None:
    assert _share("supported", {"bn": 0.0, "sn-uniform": 0.0}) <= 0.05


def test_with_a_gain_of_the_margin_over_each_of_many_refutation_is_rarer_than_five_percent() -> None:
    """At the margin the chance is largest; well above it, none is refuted."""
    found = [_compare(seed, dict.fromkeys(OTHERS, SCORE_MARGIN)) for seed in range(DRAWS)]
    at_margin = sum(bool(refuted(items, 0.95)) for items in found)
    assert at_margin <= 0.05 * DRAWS
    assert at_margin < sum(any(item.estimate.below(SCORE_MARGIN) for item in items) for items in found)
    assert _share("not supported", dict.fromkeys(OTHERS, 0.02), 50) == 0


def test_planted_truths_are_found() -> None:
    assert _share("supported", dict.fromkeys(OTHERS, 0.02), 50) >= 0.9
    assert _share("not supported", {**dict.fromkeys(OTHERS, 0.02), "sn-shared": -0.01}, 50) >= 0.9


@pytest.mark.parametrize("seed", range(20))
def test_of_a_single_opponent_the_interval_decides(seed: int) -> None:
    (item,) = _compare(seed, {"bn": 0.002})
    assert bool(refuted([item], 0.95)) == item.estimate.below(SCORE_MARGIN)


def test_an_opponent_without_results_still_takes_its_share_of_the_level() -> None:
    alone = next(items for seed in range(200) if refuted(items := _compare(seed, {"bn": 0.0}), 0.95)
                 and not refuted([*items * 3], 0.95))  # fmt: skip
    empty = _compare(0, {"gn": 0.0}, replicates=1)
    assert not refuted([*alone, *empty, *empty], 0.95)


def test_intervals_cover_and_the_bootstrap_less_so() -> None:
    found = [_compare(seed, {"bn": 0.01}, replicates=8)[0] for seed in range(DRAWS)]
    assert 0.91 <= np.mean([item.estimate.contains(0.01) for item in found]) <= 0.99
    ends = [bootstrap_interval(item.per_replicate, 0.95) for item in found]
    assert 0.83 <= np.mean([end is not None and end[0] <= 0.01 <= end[1] for end in ends]) <= 0.94


def test_probability_is_the_share_of_pairs_with_ties_half() -> None:
    trials = pd.DataFrame({
        "norm": ["sn"] * 4 + ["bn"] * 4, "depth": [8, 8, 14, 14] * 2, "replicate": [0, 1] * 4, "state": "done",
        "train_loss": [1.0, 2.0, 3.0, 4.0, 0.0, 2.0, 9.0, 3.0],
    })  # fmt: skip
    found = paired_differences(
        trials.set_index(np.arange(10, 18)), factors=["norm", "depth"], factor="norm", reference="sn", other="bn",
        metric="train_loss", confidence=0.95,
    )  # fmt: skip
    assert found.probability == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found.trials == tuple(range(10, 18))


def test_p_values_are_adjusted_over_those_with_the_same_reference() -> None:
    items = [
        replace(item, p_value=p)
        for item, p in zip(_compare(0, dict.fromkeys(OTHERS, 0)), (0.2, 0.01, 0.03), strict=True)
    ]
    first, alone = (
        difference_effects(build_measures()["val_accuracy"], items),
        difference_effects(build_measures()["val_accuracy"], items[:1]),
    )
    assert [effect.comparison for effect in first] == [f"sn - {norm}" for norm in OTHERS]
    assert [effect.p_value for effect in first] == pytest.approx([0.2, 0.03, 0.06])
    assert alone[0].p_value == 0.2
