"""The keys of a checkpoint, which older runs have: with other keys, they could not be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from study.record.layout import TrialFolder
from tests.training.trials import SHORT, disturb, job, send_sigterm, smoke_trial


def test_a_checkpoint_within_an_epoch_has_the_keys_of_older_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(smoke_trial(*SHORT), tmp_path / "r0")
    disturb(monkeypatch, work, "_take_step", 3, send_sigterm)
    checkpoint = torch.load(TrialFolder(work.folder).last_checkpoint, weights_only=True)
    losses = checkpoint["unseen"]  # logits, labels and losses of the four steps since the last loss check
    assert [tuple(values.shape) for values in losses] == [(4, 16, 10), (4, 16), (4,)]
    assert set(checkpoint["callbacks"]) == {"Recorder"}
    recorder = checkpoint["callbacks"]["Recorder"]
    assert set(recorder) == {"rows", "steps", "history", "pruned", "trial"}
    assert set(recorder["rows"][0]) == {"schema", "epoch", "step", "name", "value"}
    prefixes = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert prefixes == {"network", "train_metrics"}
    metrics = {name for name in checkpoint["state_dict"] if name.startswith("train_metrics.")}
    assert {name.split(".")[1] for name in metrics} == {"accuracy", "loss"}
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"epoch": 0, "batch": 4}]
