"""Whole answers in worlds whose truth is known: how often a verdict is false, what is found, what intervals hold.

Studies are drawn until Wald's sequential test tells a rule that errs in 5 % of them from one that errs in 12 %, at most
200: the first fails in one run of a thousand, the second in most. `bench verdicts` makes all draws, of all worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log

import numpy as np
import pytest

from study.bench.verdicts.campaign import Counts, Scenario, draw, known_values, scenarios

DRAWS, FEW = 200, 4  # few: where the outcome is all but sure
RIGHT, WRONG = 0.05, 0.12
FAILS_RIGHT, PASSES_WRONG = 0.001, 0.2

Drawn = Callable[[str], Counts]


def errs(errors: int, draws: int) -> bool | None:
    """Whether so many errors are those of a wrong rule; None: neither can be said."""
    evidence = errors * log(WRONG / RIGHT) + (draws - errors) * log((1 - WRONG) / (1 - RIGHT))
    if evidence >= log((1 - PASSES_WRONG) / FAILS_RIGHT):
        return True
    return False if evidence <= log(PASSES_WRONG / (1 - FAILS_RIGHT)) else None


def _misses(tally: Counts) -> list[int]:
    return [count["above"] + count["below"] for count in tally.sides.values()]


def _by_name(name: str) -> Scenario:
    return next(scenario for scenario in scenarios() if scenario.name == name)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Draws of a world by its name, as many as all that is asked of them takes; drawn once."""

    @cache
    def of(name: str) -> Counts:
        scenario = _by_name(name)

        def enough(tally: Counts) -> bool:
            errors = [tally.verdicts[scenario.false], *_misses(tally)]
            return all(errs(number, tally.draws) is not None for number in errors)

        return draw(scenario, DRAWS, known_values(scenario), enough)

    return of


# In the first a false verdict is as likely as a rule of 5 % lets it be: the truth is where verdicts change.
AT_THE_EDGE = ["at the margin", "neither moves, 3 replicates"]


@pytest.mark.parametrize("world", AT_THE_EDGE)
def test_verdicts_are_false_in_at_most_5_percent(drawn: Drawn, scenario: str) -> None:
    tally = drawn(scenario)
    assert not errs(tally.verdicts[_by_name(scenario).false], tally.draws)


@pytest.mark.parametrize("world", AT_THE_EDGE)
def test_intervals_hold_the_truth(drawn: Drawn, scenario: str) -> None:
    tally = drawn(scenario)
    assert [count.total() for count in tally.sides.values()] == [tally.draws] * len(known_values(_by_name(scenario)))
    assert not any(errs(number, tally.draws) for number in _misses(tally))


@pytest.mark.parametrize("name", ["planted", "bn better", "the claim, 5 replicates", "the contrary", "task moves"])
def test_what_is_planted_is_found(name: str) -> None:
    scenario = _by_name(name)
    assert draw(scenario, FEW, {}).verdicts[scenario.found] >= FEW - 1


def test_the_sequential_test_tells_5_percent_from_12() -> None:
    assert _share_that_fails(RIGHT) < 0.003
    assert _share_that_fails(WRONG) > 0.6


def _share_that_fails(rate: float) -> float:
    """Of runs of the test on a rule that errs so often."""
    verdicts = {(errors, draws): errs(errors, draws) for draws in range(1, DRAWS + 1) for errors in range(draws + 1)}
    runs = (np.random.default_rng(0).random((1000, DRAWS)) < rate).cumsum(axis=1)
    said = ((verdicts[errors, draws] for draws, errors in enumerate(run, 1)) for run in runs.tolist())
    return sum(next((errs for errs in run if errs is not None), False) for run in said) / len(runs)
