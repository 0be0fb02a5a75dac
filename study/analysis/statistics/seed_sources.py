"""How far runs lie apart that differ in one seed alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from study.analysis.statistics.distances import squared_jensen_shannon
from study.analysis.statistics.intervals import Floats


def pool_deviations(groups: Iterable[Floats]) -> float | None:
    """The standard deviation of numbers (run,) inside groups; None where no group has two."""
    variances = [float(values.var(ddof=1)) for values in groups if len(values) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else None


def pool_distances(groups: Iterable[Floats]) -> float | None:
    """The root mean squared Jensen-Shannon distance of profiles (run, axis, position, member) inside groups."""
    tables = [squared_jensen_shannon(profiles) for profiles in groups if len(profiles) > 1]
    means = [float(table[np.triu_indices(len(table), 1)].mean()) for table in tables]
    return float(np.sqrt(np.mean(means))) if means else None
