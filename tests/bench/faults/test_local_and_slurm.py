"""Faults of the local launcher and of Slurm lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.cli.main import main
from tests.bench.faults.real_faults import inject


@pytest.mark.slow
def test_local_faults_lose_nothing(tmp_path: Path) -> None:
    faults = ("--only", "truncate-checkpoint,kill-driver", "--set", "replicates=1")
    result = inject(tmp_path, *faults, run=lambda *arguments: main([*arguments]))
    truncated, killed = (row["trials hit"] for row in result["rows"][:2])
    assert truncated == 1
    assert killed in (1, 2)  # those that train at that moment


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_faults_of_slurm_lose_nothing(tmp_path: Path) -> None:
    settings = ("--set", "launch.partition=main", "--set", "replicates=1")
    inject(tmp_path, "--launcher", "slurm", "--only", "term-job", *settings)
