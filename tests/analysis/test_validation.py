"""Whole answers in worlds whose truth is known: how often a verdict is false, what is found, what intervals hold.

A rule is to err in at most 5 % of studies. `AT_MOST` errors in `DRAWS` draws is what such a rule exceeds once in 2,000
runs of a test, and what a rule that errs in 12 % exceeds in most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from scipy import stats

from study.bench.verdicts import Tally, draw, known_values, worlds

DRAWS = 200
AT_MOST = int(stats.binom.ppf(0.9995, DRAWS, 0.05))
FEW = 20  # draws where the outcome is all but sure

Drawn = Callable[..., Tally]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """What draws of a world came to, by its name; drawn once."""
    named = {world.name: world for world in worlds()}

    @cache
    def of(name: str, draws: int = DRAWS) -> Tally:
        return draw(named[name], draws, known_values(named[name]))

    return of


def test_the_tolerance_passes_5_percent_and_catches_12() -> None:
    assert stats.binom.sf(AT_MOST, DRAWS, 0.05) < 1e-3
    assert stats.binom.sf(AT_MOST, DRAWS, 0.12) > 0.5


@pytest.mark.parametrize(
    ("world", "false"),
    [
        ("null", "supported"),
        ("at the margin", "not supported"),
        ("half the claim", "supported"),
        ("neither moves, 3 replicates", "supported"),
    ],
)
def test_a_rule_errs_in_at_most_5_percent(drawn: Drawn, world: str, false: str) -> None:
    assert drawn(world).verdicts[false] <= AT_MOST


@pytest.mark.parametrize("world", ["null", "at the margin", "half the claim", "neither moves, 3 replicates"])
def test_intervals_hold_the_truth(drawn: Drawn, world: str) -> None:
    sides = drawn(world).sides
    assert sides
    for name, count in sides.items():
        assert count.total() == DRAWS, name
        assert count["above"] + count["below"] <= AT_MOST, name


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        ("planted", "supported"),
        ("bn better", "not supported"),
        ("the claim, 5 replicates", "supported"),
        ("the contrary", "not supported"),
        ("task moves", "supported"),
    ],
)
def test_what_is_planted_is_found(drawn: Drawn, world: str, verdict: str) -> None:
    assert drawn(world, FEW).verdicts[verdict] >= 0.8 * FEW
