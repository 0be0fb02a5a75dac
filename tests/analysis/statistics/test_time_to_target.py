from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.time_to_target import epochs_to_target

CURVES = {"a": [0.0, 0.4, 0.8, 1.0], "b": [0.0, 0.2, 0.3, 0.5], "c": [0.0, 0.0, 0.0, 0.01]}


def _measure(scores: dict[str, list[float]], norms: str, levels: str = "ab", **columns: Any) -> pd.DataFrame:
    """Trials "a0", "b1", ...: a curve by name; the letter is the norm."""
    trials = pd.DataFrame(
        {"key": list(scores), "norm": list(norms), "state": "done", **columns}, index=range(5, 5 + len(scores))
    )
    rows = [(key, epoch, "val_score", value) for key, values in scores.items() for epoch, value in enumerate(values)]
    curves = pd.DataFrame(
        [*rows, *((key, 0, "val_loss", 9.0) for key in scores)], columns=["key", "epoch", "name", "value"]
    )
    return epochs_to_target(
        trials,
        curves.sample(frac=1, random_state=0),
        factors=["norm", *columns],
        factor="norm",
        levels=list(levels),
        metric="val_score",
    )


def test_the_target_is_95_percent_of_the_lower_mean_and_curves_are_lines() -> None:
    times = _measure({name: CURVES[name] for name in "ab"}, "ab")
    assert times["epochs_to_target"].tolist() == pytest.approx([1 + 0.075 / 0.4, 2 + 0.175 / 0.2])
    assert times.index.tolist() == [5, 6]
    assert not times["censored"].any()


def test_the_mean_is_over_the_runs_of_a_level() -> None:
    times = _measure({"a": CURVES["a"], "b": CURVES["b"], "d": [0.0, 0.1, 0.2, 0.3]}, "abb")
    assert times["epochs_to_target"].iloc[0] == pytest.approx(0.95)  # 0.38, on the way to 0.4
    assert times.iloc[2].tolist() == [4, True]  # never: its last epoch is 3


def test_a_third_level_neither_moves_the_target_nor_has_a_time() -> None:
    pair, three = (_measure({name: CURVES[name] for name in names}, names) for names in ("ab", "abc"))
    pd.testing.assert_frame_equal(pair, three.iloc[:2])
    assert three.iloc[2].isna().all()


def test_every_cell_has_its_own_target() -> None:
    hard = {f"{name}{cell}": [value / (1 + cell) for value in CURVES[name]] for cell in (0, 1) for name in "ab"}
    times = _measure(hard, "abab", depth=[8, 8, None, None])["epochs_to_target"].tolist()
    assert times[:2] == pytest.approx(times[2:])


def test_a_target_that_the_first_evaluation_finds_reached_is_reached_there() -> None:
    assert _measure({"a": [0.6, 0.5], "b": [0.5, 0.5]}, "ab")["epochs_to_target"].tolist() == [0, 0]


@pytest.mark.parametrize("state", ["diverged", "planned"])
def test_only_finished_runs_with_a_curve_have_a_time(state: str) -> None:
    times = _measure(
        {"a": CURVES["a"], "b": CURVES["b"], "d": CURVES["b"], "e": []}, "abbb", state=["done", "done", state, "done"]
    )
    assert times["epochs_to_target"].isna().tolist() == [False, False, True, True]


def test_nothing_finished() -> None:
    assert np.isnan(_measure({"a": CURVES["a"]}, "a", state=["planned"])["epochs_to_target"]).all()
