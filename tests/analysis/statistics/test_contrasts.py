"""Which cells are compared to measure a factor."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.contrasts import find_contrasts, find_ends, find_slope_contrasts


def _levels(*levels: object) -> pd.DataFrame:
    return pd.DataFrame({"a": list(levels)})


def test_a_numeric_factor_is_measured_between_its_ends() -> None:
    cells = pd.DataFrame(list(product((4, 2, 16, 8), ("x", "y"))), columns=["a", "b"])
    contrasts = find_contrasts(cells, "a")
    assert [cells["a"].iloc[each.cells].tolist() for each in contrasts] == [[2, 16], [2, 16]]
    assert [cells["b"].iloc[each.cells].unique().tolist() for each in contrasts] == [["x"], ["y"]]


def test_combinations_that_lack_an_end_are_left_out() -> None:
    cells = pd.DataFrame({"a": [2, 4, 16, 2, 4], "b": ["x", "x", "x", "y", "y"]})
    (contrast,) = find_contrasts(cells, "a")
    assert contrast.cells.tolist() == [0, 2]


def test_names_are_measured_by_all_pairs() -> None:
    (contrast,) = find_contrasts(_levels("x", "y", "z"), "a")
    np.testing.assert_allclose(contrast.weights, (np.ones((3, 3)) - 3 * np.eye(3)) / 6)


@pytest.mark.parametrize("levels", [(2, 2), ("x", "x"), (2,), ()])
def test_a_factor_with_one_level_has_no_contrast(levels: tuple[object, ...]) -> None:
    assert find_contrasts(_levels(*levels), "a") == []
    assert find_slope_contrasts(_levels(*levels), "a") == []


@pytest.mark.parametrize(
    ("levels", "ends"),
    [
        ([4, 2, 16], (2, 16)),
        ([0.5, 0.1], (0.1, 0.5)),
        (["8", "16"], None),
        ([True, False], None),
        ([None, 16], None),
        ([float("nan"), 16.0], None),
        ([8, 8], None),
    ],
)
def test_only_numbers_have_ends(levels: list[Any], ends: tuple[float, float] | None) -> None:
    assert find_ends(levels) == ends


def test_a_level_that_is_missing_is_a_level() -> None:
    (contrast,) = find_contrasts(_levels(float("nan"), 16.0), "a")
    assert contrast.cells.tolist() == [0, 1]


def test_cells_that_differ_in_two_factors_are_not_compared() -> None:
    cells = pd.DataFrame({"a": [0, 1], "b": [0, 1]})
    assert [find_contrasts(cells, name) for name in cells] == [[], []]
