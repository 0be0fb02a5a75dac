"""Trials on small data sets in the published file formats, up to a complete record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from study.config.datasets import DATASETS
from study.config.schema import RunConfig
from study.data import transforms
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.layout import TrialFolder
from study.training.trial import run_job
from tests.data.trees import WRITERS

SETTINGS = {
    "coco": ["task=detection", "augmentation=flip"],
    "ade20k": ["task=segmentation", "augmentation=scale_flip", "deep_supervision=0.4"],
    "cityscapes": ["task=segmentation", "augmentation=crop_flip", "head=deeplabv3"],
}
SCORES = {"coco": "mask_ap", "ade20k": "miou", "cityscapes": "miou"}


@pytest.mark.parametrize("dataset", SETTINGS)
def test_a_trial_trains_on_the_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    WRITERS[dataset](tmp_path / "data")
    # Without this, images of 40 x 56 pixels would be enlarged to the sizes of the recipes.
    monkeypatch.setitem(DATASETS, dataset, replace(DATASETS[dataset], image_size=48))
    monkeypatch.setattr(transforms, "SHORT_SIDES", (32, 48))
    monkeypatch.setattr(transforms, "CROP", 48)
    settings = [f"dataset={dataset}", *SETTINGS[dataset], "train_samples=4", "batch_size=2", "chunks=1", "width=0.25",
                "epochs=2", "norm=sn"]  # fmt: skip
    run = RunConfig(data_root=str(tmp_path / "data"), loader_workers=0)
    trial = plan_trials(load_study("depth_vs_batch", "smoke", settings))[0]
    run_job(
        Job(
            trial=trial, folder=tmp_path / "r0", study="s", run=run, environment={"host": "h"}, command="c",
        )
    )  # fmt: skip
    record = TrialFolder(tmp_path / "r0")
    result = record.read_result()
    assert result is not None, record.state.read_text()
    assert (result["status"], result["steps"]) == ("done", 4)
    assert result["metrics"][f"test_{SCORES[dataset]}"] is not None
    assert any("published" in note for note in result["notes"])  # the note that images are missing
