"""Where trials go: how many at once, and to which device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from study.bench.speed.trial import make_job
from study.config.errors import UserError
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_places


@pytest.mark.parametrize(
    ("devices", "settings", "cores", "places"),
    [
        (["cpu"], [], 2, 2),
        (["cpu"], ["run.threads=4"], 2, 1),
        (["cpu"], ["run.trials_per_device=3"], 2, 2),
        (["cuda:0", "cuda:1"], [], 64, 2),
        (["cuda:0", "cuda:1"], ["run.trials_per_device=3"], 64, 6),
        (["cuda:0", "cuda:1"], ["run.devices_per_trial=2"], 64, 1),
        (["cpu"], ["run.devices_per_trial=2"], 8, 4),
    ],
)
def test_trials_at_once(devices: list[str], settings: list[str], cores: int, places: int) -> None:
    study = load_study("depth_vs_batch", "laptop", settings)
    assert count_places(study.run, devices, cores) == places


def test_more_devices_than_there_are_is_one_line() -> None:
    study = load_study("depth_vs_batch", "laptop", ["run.devices_per_trial=3"])
    with pytest.raises(UserError, match=r"devices_per_trial=3: allowed: 1 to 2"):
        count_places(study.run, ["cuda:0", "cuda:1"], 64)


def test_trials_are_dealt_evenly_to_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes that never start: what matters is the device in their job."""
    executor = LocalExecutor(6, ["cuda:0", "cuda:1"], threads=1)
    jobs = []

    def process(*, args: tuple[object], **_: object) -> SimpleNamespace:
        jobs.append(args[0])
        return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(executor.context, "Process", process)
    trials = plan_trials(load_study("depth_vs_batch", "laptop", []))[:6]
    for trial in trials:
        executor.submit([make_job(trial, tmp_path / trial.key, threads=1)])
    assert Counter(job.devices[0] for job in jobs) == {"cuda:0": 3, "cuda:1": 3}
    del executor.running[trials[0].key]  # one on the first has ended: the next goes there
    executor.submit([make_job(trials[0], tmp_path / trials[0].key, threads=1)])
    assert jobs[-1].devices == jobs[0].devices
