"""The folder of links to the W&B runs of a study."""

from __future__ import annotations

from pathlib import Path

from study.record.layout import StudyFolder
from study.record.wandb_links import (
    count_unsynced_runs,
    find_runs_below,
    link_wandb_runs,
    mark_continued,
    mark_uploaded,
    was_uploaded,
)  # fmt: skip


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


def test_the_summary_run_is_linked_and_runs_that_are_not_on_the_server_are_counted(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    trial = folder.trial("sn-1", 0).wandb / "offline-run-1-sn-1-r0"
    online = folder.trial("sn-2", 0).wandb / "run-2-sn-2-r0"
    summary = folder.report / "wandb" / "offline-run-2-summary-study"
    for run in (trial, online, summary):
        run.mkdir(parents=True)
    link_wandb_runs(folder)
    assert {link.name for link in folder.wandb.iterdir()} == {trial.name, online.name, summary.name}
    assert count_unsynced_runs(folder) == 3
    (trial / "run-sn-1-r0.wandb.synced").touch()  # by `wandb sync`
    mark_uploaded(online / "run-sn-2-r0.wandb")
    assert count_unsynced_runs(folder) == 1
    mark_continued(trial / "run-sn-1-r0.wandb")  # only `sync` can upload it
    assert count_unsynced_runs(folder) == 2


def test_runs_that_the_server_may_know_are_told_from_others(tmp_path: Path) -> None:
    offline, online = tmp_path / "wandb" / "offline-run-1-a", tmp_path / "wandb" / "run-1-a"
    offline.mkdir(parents=True)
    online.mkdir()
    assert sorted(find_runs_below(tmp_path)) == [offline, online]
    assert [was_uploaded(run) for run in (offline, online)] == [False, True]
    mark_continued(offline / "run-a.wandb")
    assert was_uploaded(offline)
