"""Which executor a study's launcher stands for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from study.config.errors import UserError
from study.config.schema import LAUNCHERS
from study.plan.loading import load_study
from study.record.layout import StudyFolder
from study.sweep.executors.build import build_executor
from study.sweep.executors.local import LocalExecutor


def test_every_launcher_has_a_module_that_builds_its_executor() -> None:
    for launcher in LAUNCHERS:
        assert callable(import_module(f"study.sweep.executors.{launcher}").build_executor)


def test_workers_are_the_places_of_the_local_executor(tmp_path: Path) -> None:
    executor = build_executor(load_study("depth_vs_batch", "smoke", ["run.device=cpu"]), StudyFolder(tmp_path), 3)
    assert isinstance(executor, LocalExecutor)
    assert executor.places == 3


@pytest.mark.parametrize(
    ("settings", "workers", "complaint"),
    [
        (["launch.launcher=slurm"], 2, "--workers: only for the local launcher"),
        (["run.device=cpu", "precision=float16"], None, "base.precision: 'float16': needs a CUDA device"),
        (["launch.launcher=ray", "precision=float16"], None, "base.precision: 'float16': needs a CUDA device"),
    ],
)
def test_what_a_launcher_cannot_do_is_an_error(
    tmp_path: Path, settings: list[str], workers: int | None, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        build_executor(load_study("depth_vs_batch", "smoke", settings), StudyFolder(tmp_path), workers)
