"""The bench of the driver: every trial is taken in once, and what it says can be missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from study.bench.speed.driver import _least_time
from tests.conftest import ROOT


def test_the_least_time_is_that_of_trials_started_as_places_are_free() -> None:
    assert _least_time([1.0, 2.0, 3.0], 1) == 6.0
    assert _least_time([1.0, 2.0, 3.0], 2) == 4.0
    assert _least_time([1.0, 2.0, 3.0], 9) == 3.0


@pytest.mark.slow
def test_every_trial_is_taken_in_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.bench", "driver", "--quick", "--json", str(tmp_path / "driver.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    haste, in_time, again = json.loads((tmp_path / "driver.json").read_text())["rows"]
    assert haste["trials"] == in_time["trials"] == again["trials"] == 60
    assert in_time["wall s"] >= in_time["least s"] > 2.0
    assert again["least s"] == 0.0  # nothing was started again
