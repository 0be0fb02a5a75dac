"""Figures: what a map may average."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from study.analysis.figures import weight_maps
from study.analysis.profiles import DEPTH_GRID


@pytest.mark.parametrize("order", [1, -1])
def test_a_map_averages_networks_of_one_pool(order: int) -> None:
    trials = pd.DataFrame({"key": ["a", "b"], "depth": 8, "batch_size": 1, "pool": ["in,ln", "in,ln,bn"]})[::order]
    of_network = {"a": [0.5, 0.5, 0.0, 0.0], "b": [0.2, 0.2, 0.6, 0.0]}
    profiles = {key: np.tile(weights, (2, len(DEPTH_GRID), 1)) for key, weights in of_network.items()}
    (heatmap,) = weight_maps(profiles, trials, "var").data
    assert dict(zip(heatmap.y, (row[0] for row in heatmap.z), strict=True)) == {"in": 0.2, "ln": 0.2, "bn": 0.6}
