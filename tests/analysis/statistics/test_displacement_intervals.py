"""Intervals of small displacements, where seeds move networks along one direction or several."""

from __future__ import annotations

import numpy as np
import pytest

from study.analysis.statistics.contrasts import Contrast
from study.analysis.statistics.displacement import displacement, displacement_p_values, relative_displacement
from study.analysis.statistics.intervals import Floats
from study.analysis.statistics.moments import CellDistances, Moments, measure_contrasts

PAIR = Contrast(cells=np.array([0, 1]), weights=np.array([[-0.5, 0.5], [0.5, -0.5]]))
DRAWS = 300


def draw_moments(seed: int, replicates: int, directions: int, moved: float) -> Moments:
    """Two cells whose centres lie `moved` apart along the first direction; their contrast has a variance of 1."""
    points = np.random.default_rng(seed).standard_normal((2, replicates, directions)) / np.sqrt(2 * directions)
    points[1, :, 0] += moved
    squared: Floats = ((points[:, :, None, None] - points[None, None]) ** 2).sum(axis=-1)[..., None]
    return measure_contrasts(CellDistances(squared), [PAIR])


# In one direction, the jackknife alone covers 81 % at one standard error, and 17 % of its intervals lie below.
@pytest.mark.parametrize("standard_errors", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("replicates", "directions"), [(5, 1), (16, 1), (16, 8)])
def test_intervals_of_small_displacements_cover(replicates: int, directions: int, standard_errors: float) -> None:
    moved = standard_errors / np.sqrt(replicates)
    found = [displacement(draw_moments(seed, replicates, directions, moved), 0.95) for seed in range(DRAWS)]
    below = np.mean([each.high is not None and each.high < moved for each in found])
    above = np.mean([each.low is not None and each.low > moved for each in found])
    assert below < 0.08
    assert above < 0.06


def test_p_values_are_those_of_intervals() -> None:
    for seed in range(40):
        moments = draw_moments(seed, replicates=5, directions=2, moved=0.8)
        low = displacement(moments, 0.95).low
        assert low is not None
        assert (displacement_p_values(moments)[0] < 0.025) == (low > 0)


def test_the_mean_of_the_parts_of_pairs_is_the_squared_displacement() -> None:
    moments = draw_moments(0, replicates=6, directions=3, moved=0.5)
    pairs = ~np.eye(6, dtype=bool)
    assert moments.parts[pairs].mean(axis=0) == pytest.approx(moments.squared[0])
    without_first = moments.parts[1:, 1:][pairs[1:, 1:]].mean(axis=0)
    assert without_first == pytest.approx(moments.squared[1])


def test_large_displacements_have_the_error_of_the_jackknife() -> None:
    """At 20 standard errors, that of the mean contrast along its direction, from the replicates' own contrasts."""
    replicates, moved = 8, 20 / np.sqrt(8)
    points = np.random.default_rng(3).standard_normal((2, replicates, 1)) / np.sqrt(2)
    points[1] += moved
    squared = ((points[:, :, None, None] - points[None, None]) ** 2).sum(axis=-1)[..., None]
    found = displacement(measure_contrasts(CellDistances(squared), [PAIR]), 0.95)
    contrasts = (points[1] - points[0]).ravel()
    reach = 2.365 * contrasts.std(ddof=1) / np.sqrt(replicates)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.05)


def test_one_axis_is_measured_as_if_it_were_alone() -> None:
    points = np.random.default_rng(5).standard_normal((2, 6, 2, 3))  # two axes
    squared = ((points[:, :, None, None] - points[None, None]) ** 2).sum(axis=-1)
    both, alone = (measure_contrasts(CellDistances(each), [PAIR]) for each in (squared, squared[..., [1]]))
    for measure in (displacement, relative_displacement):
        found, expected = measure(both, 0.95, 1), measure(alone, 0.95)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
