"""Time to target: epochs until the validation score first reaches a target that both compared levels share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import Floats, cell_numbers

TIME = "epochs_to_target"
TARGET = 0.95  # share of the lower of the two levels' mean last scores, which both levels can reach before the end


def epochs_to_target(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    factors: Sequence[str],
    factor: str,
    levels: Sequence[object],
    metric: str,
) -> pd.DataFrame:
    """Epochs of training until `metric` first reaches its target: columns `epochs_to_target` and `censored`.

    The target of a cell (its levels of all other factors) is `TARGET` times the lower of the two levels' mean scores
    after the last epoch, over finished runs: it is the same for both, and no third level affects it. The score is
    interpolated linearly between evaluations; a target that is already reached at the first evaluation is reached
    there. A run that never reaches it counts as its last epoch + 1 and is `censored`: it takes at least that long, so
    its difference from a run that does reach the target is too small rather than too large. Trials without a curve, or
    at another level, have NaN.

    curves: key, epoch, name and value. The result has the index of `trials`.
    """
    compared = trials[trials["state"].eq("done") & np.array([level in levels for level in trials[factor]], dtype=bool)]
    values = curves[curves["name"].eq(metric) & curves["key"].isin(compared["key"])].dropna().sort_values("epoch")
    scores = {str(key): (part["epoch"].to_numpy(float), part["value"].to_numpy(float))
              for key, part in values.groupby("key")}  # fmt: skip
    compared = compared[compared["key"].isin(list(scores))]
    cells = cell_numbers(compared, [name for name in factors if name != factor])
    last = pd.Series([scores[key][1][-1] for key in compared["key"]], index=compared.index, dtype=float)
    means = last.groupby([cells, compared[factor].map(repr)]).mean().groupby(level=0).min()
    found = {
        row: _find_first(*scores[key], TARGET * means[cell])
        for row, key, cell in zip(compared.index, compared["key"], cells, strict=True)
    }
    table = pd.DataFrame.from_dict(found, orient="index", columns=["epochs_to_target", "censored"])
    times: pd.DataFrame = table.reindex(trials.index).astype(float)
    return times


def _find_first(epochs: Floats, scores: Floats, target: float) -> tuple[float, bool]:
    """The epoch in which a curve first reaches the target, and whether it never does."""
    reached = np.flatnonzero(scores >= target)
    if not reached.size:
        return float(epochs[-1] + 1), True
    around = slice(max(reached[0] - 1, 0), reached[0] + 1)  # the evaluations before and after
    return float(np.interp(target, scores[around], epochs[around])), False
