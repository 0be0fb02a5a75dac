"""Trials that start from other trials: their plan, their numbers, and their errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from study.cli.main import main
from study.config.errors import UserError
from study.config.yaml_input import read_yaml
from study.models import build_network
from study.plan.loading import load_study, study_from_dict
from study.plan.trials import PlannedTrial, plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.record.switch_weights import read_last_weights
from study.training.trial import run_job
from study.training.warm_start import read_weights
from tests.conftest import Run
from tests.norms.official_files import official_state
from tests.training.trials import job, numbers, train_and_die_after

SMALL = ["norm=sn", "batch_size=2", "train_samples=64"]


def planned(*overrides: str) -> list[PlannedTrial]:
    return plan_trials(load_study("depth_vs_batch", "smoke", [*SMALL, *overrides]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A finished trial of `SMALL`."""
    trial = planned()[0]
    folder = TrialFolder(tmp_path_factory.mktemp("source") / "trials" / trial.trial_id / "r0")
    run_job(job(trial, folder.path))
    return folder


def history(folder: TrialFolder) -> Any:
    """Switch weights (epochs, layers, statistics, pool)."""
    state = torch.load(folder.last_checkpoint, weights_only=True)
    (recorder,) = (part for name, part in state["callbacks"].items() if "Recorder" in name)
    return recorder["history"].numpy()


# ------------------------------------------------------------------------------------------------ the plan


def test_a_start_trial_elsewhere_is_looked_at_before_anything_runs(source: TrialFolder, tmp_path: Path) -> None:
    cell = source.path.parent
    (trial,) = planned("start.rule=argmax", f"start.trial={cell}")
    assert trial.waits_for is None
    assert trial.source is not None
    assert trial.source.locate(0, StudyFolder(tmp_path)) == source.path
    (pinned,) = planned("start.rule=argmax", f"start.trial={source.path}", "start.fresh=true", "replicates=1")
    assert str(pinned.config.start_source).endswith("-r0")
    study = load_study("depth_vs_batch", "smoke", [*SMALL, "start.rule=argmax", f"start.trial={cell}"])
    assert plan_trials(study_from_dict(study.model_dump(mode="json"), "study.yaml"))[0].key == trial.key

    for overrides, part in {
        ("replicates=2",): "r1 does not exist",
        ("depth=14",): "depth=14 does not fit the trial it starts from, depth=8",
        ("validation_fraction=0.4",): "larger than 0.2, that of the trial it starts from",
        (f"start.trial={source.path}", "replicates=2"): "every replicate has its own split",
    }.items():
        with pytest.raises(UserError, match=part):
            planned("start.rule=argmax", f"start.trial={cell}", *overrides)
    unfinished = TrialFolder(tmp_path / "r0")
    write_json(unfinished.state, {"state": "running", "attempt": 1})
    with pytest.raises(UserError, match="is unfinished: stale"):
        planned("start.rule=argmax", f"start.trial={tmp_path}")


# -------------------------------------------------------------------------------------------- its training


def start_from(source: Path, folder: Path, *overrides: str) -> Any:
    """A job of the last trial of a plan."""
    return replace(job(planned(*overrides)[-1], folder), start=source)


def test_without_training_on_a_start_has_the_numbers_of_its_source(source: TrialFolder, tmp_path: Path) -> None:
    """With batch statistics that are averaged at the end of training: those of the source were, too."""
    averaged = job(planned("bn_statistics=batch")[0], tmp_path / "averaged" / "r0")
    run_job(averaged)
    rules = ("factors.start_rule=[scratch, fine_tune]", "bn_statistics=batch", "start.base={epochs: 0}")
    again = start_from(averaged.folder, tmp_path / "again" / "r0", *rules)
    run_job(again)
    before, after = (TrialFolder(each.folder).read_result() for each in (averaged, again))
    assert before is not None
    assert after is not None
    assert (after["epochs"], after["steps"]) == (0, 0)
    names = ("val_loss", "val_accuracy", "test_loss", "fit_loss")
    assert [after["metrics"][name] for name in names] == pytest.approx([before["metrics"][name] for name in names])
    assert TrialFolder(again.folder).last_checkpoint.exists()


def test_switch_weights_change_until_the_epoch_in_which_they_are_frozen(source: TrialFolder, tmp_path: Path) -> None:
    overrides = ("factors.start_rule=[scratch, frozen]", "start.epoch=1", "start.base={epochs: 3}")
    work = start_from(source.path, tmp_path / "r0", *overrides)
    run_job(work)
    epochs = history(TrialFolder(work.folder))
    np.testing.assert_array_equal(epochs[0], history(source)[-1])
    assert not np.array_equal(epochs[1], epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[1])
    np.testing.assert_array_equal(epochs[3], epochs[1])


@pytest.mark.parametrize(
    "overrides",
    [
        ["factors.start_rule=[scratch, frozen]", "start.epoch=1", "solver=adam"],
        ["factors.start_rule=[scratch, permute]", "start.fresh=true"],
        ["factors.start_rule=[scratch, transplant]", "depth=[8, 14]", "start.cell={depth: 8}"],
    ],
    ids=["frozen", "permute", "transplant"],
)
def test_a_resumed_start_is_an_uninterrupted_one_bit_for_bit(
    source: TrialFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    whole, killed = (
        start_from(source.path, tmp_path / name / "r0", *overrides, "start.base={epochs: 3}") for name in "ab"
    )
    run_job(whole)
    train_and_die_after(monkeypatch, killed, 1)
    train_and_die_after(monkeypatch, killed, 2)
    run_job(killed)
    assert numbers(TrialFolder(killed.folder)) == numbers(TrialFolder(whole.folder))


def test_a_fresh_start_takes_the_switch_weights_and_initializes_the_rest(source: TrialFolder, tmp_path: Path) -> None:
    rules = ("factors.start_rule=[scratch, frozen]", "start.fresh=true", "start.base={epochs: 0}")
    work = start_from(source.path, tmp_path / "r0", *rules)
    run_job(work)
    _, chosen = read_last_weights(TrialFolder(work.folder).switch_weights)
    np.testing.assert_allclose(chosen, read_last_weights(source.switch_weights)[1], atol=1e-6)
    weights = [torch.load(each / "last.ckpt", weights_only=True)["state_dict"]["network.conv1.weight"]
               for each in (work.folder, source.path)]  # fmt: skip
    assert not torch.equal(*weights)


def test_a_damaged_start_checkpoint_fails_the_trial(source: TrialFolder, tmp_path: Path) -> None:
    broken = tmp_path / "r0"
    broken.mkdir()
    (broken / "trial.yaml").write_bytes(source.trial.read_bytes())
    (broken / "last.ckpt").write_bytes(source.last_checkpoint.read_bytes()[:-100])
    work = start_from(broken, tmp_path / "own" / "r0", "factors.start_rule=[scratch, argmax]")
    run_job(work)
    state, reason = TrialFolder(work.folder).status()
    assert state == "failed"
    assert f"StartError: {broken}/last.ckpt: cannot be read as weights" in reason


# ---------------------------------------------------------------------------------------- the command line

STUDY = """
title: t
question: q
factors: {norm: [sn], start_rule: [shared, scratch, fine_tune]}
base: {batch_size: 2, epochs: 1, train_samples: 64}
"""


def test_a_study_of_warm_starts_runs_its_trials_in_the_order_that_they_need(run_study: Run, tmp_path: Path) -> None:
    (tmp_path / "starts.yaml").write_text(STUDY)
    done = run_study("--study", str(tmp_path / "starts.yaml"), "--scale", "smoke", "--set", "tracking.mode=disabled")
    assert done.returncode == 0, done.stderr
    trials = {trial.trial_id.split("-")[1]: trial for trial in StudyFolder(tmp_path / "runs" / "starts").trials()}
    started = {rule: read_json(trial.state)["started"] for rule, trial in trials.items()}
    assert min(started, key=lambda rule: started[rule]) == "scratch"  # although its level is second
    assert 'factors.start_rule=["scratch", "shared"]' in read_yaml(trials["shared"].trial)["command"]


def test_a_trial_starts_from_a_file_of_weights(source: TrialFolder, tmp_path: Path) -> None:
    file = source.last_checkpoint
    (trial,) = planned("start.rule=argmax", f"start.checkpoint={file}", "epochs=0")
    assert str(trial.config.start_source).startswith("file-")
    work = replace(job(trial, tmp_path / "r0"), start=file)
    run_job(work)
    assert set(np.unique(read_last_weights(TrialFolder(work.folder).switch_weights)[1])) == {0.0, 1.0}


def test_switch_weights_that_a_sparse_norm_has_fixed_can_be_trained_again(tmp_path: Path) -> None:
    ssn = ("norm=ssn", "start.base={epochs: 1}")
    source = job(planned(*ssn[:1])[0], tmp_path / "source" / "r0")
    run_job(source)
    for thaw in ("false", "true"):
        rules = ("factors.start_rule=[scratch, fine_tune]", f"start.thaw={thaw}", "logit_learning_rate=1000")
        work = start_from(source.folder, tmp_path / thaw / "r0", *ssn, *rules)
        run_job(work)
        first = history(TrialFolder(work.folder))[0]
        assert (first.max(-1) == 1.0).all() == (thaw == "false")


def test_the_names_in_a_published_file_are_mapped_to_those_of_our_network(tmp_path: Path) -> None:
    state = {"state_dict": {f"module.{name}": value for name, value in official_state().items()}}
    torch.save(state, tmp_path / "sn.pth", _use_new_zipfile_serialization=False)  # as files of 2018 are
    network = build_network(planned()[0].config.model_copy(update={"depth": 50}), 0)
    assert read_weights(tmp_path / "sn.pth").keys() == network.state_dict().keys()


def test_a_checkpoint_without_fitting_weights_is_one_line(
    source: TrialFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.pt").write_bytes(b"no weights")
    flags = ("--study", "depth_vs_batch", "--scale", "smoke", "--out", str(tmp_path))
    for checkpoint, depth, part in (
        (tmp_path / "no.pt", 8, "no.pt: cannot be read as weights"),
        (source.last_checkpoint, 14, "last.ckpt: does not fit: it has no layer1.1.conv1.weight"),
    ):
        settings = ("norm=sn", f"depth={depth}", "start.rule=argmax", f"start.checkpoint={checkpoint}")
        assert main([*flags, *(part for setting in settings for part in ("--set", setting))]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert len(error.splitlines()) == 1
