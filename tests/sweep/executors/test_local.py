"""How many trials run at once on a machine, and on which device."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from study.config.errors import UserError
from study.plan.job import Job
from study.plan.loading import load_study
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors import local
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_places
from tests.sweep.jobs import build_jobs


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


def test_more_devices_per_trial_than_there_are_is_an_error() -> None:
    study = load_study("depth_vs_batch", "laptop", ["run.devices_per_trial=3"])
    with pytest.raises(UserError, match=r"devices_per_trial=3: allowed: 1 to 2"):
        count_places(study.run, ["cuda:0", "cuda:1"], 64)


@pytest.fixture
def no_forkserver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "start_forkserver", lambda: None)


@pytest.mark.usefixtures("no_forkserver")
def test_each_trial_goes_to_the_device_with_the_fewest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executor = LocalExecutor(6, ["cuda:0", "cuda:1"], threads=1)
    started: list[Job] = []

    def process(*, args: tuple[list[Job]], **_: object) -> SimpleNamespace:
        started.extend(args[0])
        return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr(executor.context, "Process", process)
    jobs = build_jobs(StudyFolder(tmp_path), 6)
    executor.submit(jobs)
    assert Counter(job.devices[0] for job in started) == {"cuda:0": 3, "cuda:1": 3}
    del executor.running[0]  # as after the end of a trial on the first device
    executor.submit(jobs[:1])
    assert started[-1].devices == started[0].devices


@pytest.mark.usefixtures("no_forkserver")
def test_a_trial_that_meets_a_dead_forkserver_ends_and_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executor = LocalExecutor(1, ["cpu"], threads=1)

    def refuse() -> None:
        raise EOFError

    monkeypatch.setattr(executor.context, "Process", lambda **_: SimpleNamespace(start=refuse))
    (job,) = build_jobs(StudyFolder(tmp_path), 1)
    executor.submit([job])
    assert executor.wait(0) == {job.trial.key: "was not started, because the forkserver ended"}
    assert executor.wait(0) == {}
    assert not executor.running


class Finishing:
    """A process that has written its result and still uploads its W&B run."""

    alive, terminated, exitcode = True, False, 0

    def __init__(self) -> None:
        self.sentinel, self.other_end = os.pipe()

    def start(self) -> None:
        pass

    def is_alive(self) -> bool:
        return self.alive

    def terminate(self) -> None:
        self.terminated = True

    def join(self, timeout: float | None = None) -> None:
        self.alive = False


@pytest.mark.usefixtures("no_forkserver")
def test_a_trial_with_a_result_makes_room_for_the_next_and_is_not_disturbed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executor, processes = LocalExecutor(1, ["cpu"], threads=1), [Finishing() for _ in range(3)]
    free = iter(processes)
    monkeypatch.setattr(executor.context, "Process", lambda **_: next(free))
    first, second, third = build_jobs(StudyFolder(tmp_path), 3)
    executor.submit([first])
    assert executor.wait(0) == {}
    write_json(TrialFolder(first.folder).result, {})
    assert executor.wait(0) == {first.trial.key: "has a result"}

    executor.submit([second])
    write_json(TrialFolder(second.folder).result, {})
    assert executor.wait(0) == {}  # no more such processes than places
    processes[0].alive = False
    assert executor.wait(0) == {second.trial.key: "has a result"}
    executor.close()
    assert not any(process.alive for process in processes[:2])
    assert not any(process.terminated for process in processes)

    write_json(TrialFolder(third.folder).result, {})  # of an attempt whose record is damaged
    executor.submit([third])
    assert executor.wait(0) == {}
