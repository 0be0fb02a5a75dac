"""The folder of links to the W&B runs of a study."""

from __future__ import annotations

from pathlib import Path

from study.record.layout import StudyFolder
from study.record.wandb_links import count_unsynced_runs, link_wandb_runs


def test_links_follow_the_runs_of_all_trials(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    first = folder.trial("sn-1", 0).wandb / "offline-run-1-sn-1-r0"
    first.mkdir(parents=True)
    link_wandb_runs(folder)
    first.rename(first.with_name("offline-run-2-sn-1-r0"))
    link_wandb_runs(folder)
    link_wandb_runs(folder)
    (link,) = folder.wandb.iterdir()
    assert link.name == "offline-run-2-sn-1-r0"
    (tmp_path / "study").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "wandb" / link.name).is_dir()


def test_the_summary_run_is_linked_and_synced_runs_are_not_counted(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    trial = folder.trial("sn-1", 0).wandb / "offline-run-1-sn-1-r0"
    summary = folder.report / "wandb" / "offline-run-2-summary-study"
    for run in (trial, summary):
        run.mkdir(parents=True)
    link_wandb_runs(folder)
    assert {link.name for link in folder.wandb.iterdir()} == {trial.name, summary.name}
    assert count_unsynced_runs(folder) == 2
    (trial / "run-sn-1-r0.wandb.synced").touch()
    assert count_unsynced_runs(folder) == 1
