"""A lost node of Ray loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.faults.real_faults import inject


@pytest.mark.ray
@pytest.mark.slow
def test_faults_of_ray_lose_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--require-services"):
        pytest.importorskip("ray")
    result = inject(tmp_path, "--launcher", "ray", "--only", "kill-node", "--set", "replicates=1")
    assert any("two Ray nodes" in note for note in result["notes"])
