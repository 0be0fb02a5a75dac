"""Answers to studies with a known truth: how often a verdict is false, what is found, how often intervals cover.

At most 200 studies are drawn, until Wald's sequential test can tell a rule that errs in 5 % of them from one that errs
in 12 %. The first rule fails in one run of a thousand, the second in most runs. `bench verdicts` makes all draws of all
scenarios.
"""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from study.bench.verdicts.counts import Counts
from study.bench.verdicts.draws import count_draws
from study.bench.verdicts.scenarios import build_scenarios

DRAWS, FEW_DRAWS = 200, 3  # few: where the outcome is nearly certain
GOOD_RATE, BAD_RATE = 0.05, 0.12
P_GOOD_FAILS, P_BAD_PASSES = 0.001, 0.2
SCENARIOS = {scenario.name: scenario for scenario in build_scenarios()}


def errs(errors: int, draws: int) -> bool | None:
    """Whether the error rate is bad by the sequential test; None while it is undecided."""
    evidence = errors * log(BAD_RATE / GOOD_RATE) + (draws - errors) * log((1 - BAD_RATE) / (1 - GOOD_RATE))
    if evidence >= log((1 - P_BAD_PASSES) / P_GOOD_FAILS):
        return True
    return False if evidence <= log(P_BAD_PASSES / (1 - P_GOOD_FAILS)) else None


# At the margin, a false verdict is as likely as a rule of 5 % allows: the truth is where verdicts change.
@pytest.mark.parametrize("name", ["at the margin", "neither moves"])
def test_at_most_5_percent_of_verdicts_are_false_and_of_intervals_miss(name: str) -> None:
    scenario = SCENARIOS[name]

    def errors(counts: Counts) -> list[int]:
        misses = [count["above"] + count["below"] for count in counts.sides.values()]
        return [counts.false, *misses]

    def is_decided(counts: Counts) -> bool:
        return all(errs(number, counts.draws) is not None for number in errors(counts))

    true_values = scenario.compute_known_values()
    counts = count_draws(scenario, DRAWS, true_values, is_decided)
    assert [count.total() for count in counts.sides.values()] == [counts.draws] * len(true_values)
    false_verdicts, *misses = errors(counts)
    assert not errs(false_verdicts, counts.draws)
    assert not any(errs(number, counts.draws) for number in misses)


@pytest.mark.parametrize("name", ["planted", "bn better", "the claim, 5 replicates", "the contrary", "task moves"])
def test_what_is_planted_is_found(name: str) -> None:
    scenario = SCENARIOS[name]
    assert scenario.expected is not None
    assert count_draws(scenario, FEW_DRAWS, {}).verdicts[scenario.expected] >= FEW_DRAWS - 1


def test_the_sequential_test_tells_5_percent_from_12() -> None:
    assert _share_that_fails(GOOD_RATE) < 0.003
    assert _share_that_fails(BAD_RATE) > 0.6


def _share_that_fails(rate: float) -> float:
    """The share of runs of the sequential test that fail a rule with this error rate."""
    decisions = {(errors, draws): errs(errors, draws) for draws in range(1, DRAWS + 1) for errors in range(draws + 1)}
    runs = (np.random.default_rng(0).random((1000, DRAWS)) < rate).cumsum(axis=1)
    outcomes = ((decisions[errors, draws] for draws, errors in enumerate(run, 1)) for run in runs.tolist())
    return sum(next((bad for bad in outcome if bad is not None), False) for outcome in outcomes) / len(runs)
