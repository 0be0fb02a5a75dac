from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from study.analysis.statistics.cell_means import estimate_mean_of_cells
from study.analysis.statistics.intervals import Estimate, Floats


def estimate_mean(values: Sequence[float] | Floats, confidence: float) -> Estimate:
    """The mean of one cell over its replicates, with its interval."""
    return estimate_mean_of_cells(np.array([values]), confidence)


def holds(estimate: Estimate, value: float) -> bool:
    """Whether an interval holds a value; False without an interval."""
    return estimate.low is not None and estimate.high is not None and estimate.low <= value <= estimate.high
