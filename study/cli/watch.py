"""`status --watch`: shows a running study from the records on disk, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from study.cli.live_view import LiveView
from study.cli.study_observer import StudyObserver, StudySnapshot
from study.config.schema import StudyConfig
from study.record.layout import StudyFolder

UNFINISHED = ("running", "queued", "planned", "stale", "damaged")


def watch(console: Console, study: StudyConfig, folder: StudyFolder) -> bool:
    """Shows the study until nothing is left to do; returns whether every trial has a result.

    Without a terminal it prints a block whenever something has changed.
    """
    observer = StudyObserver(folder, study)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
                for snapshot in _read_snapshots(observer):
                    live.update(LiveView(snapshot), refresh=True)
        else:
            before: object = None
            for snapshot in _read_snapshots(observer):
                content = snapshot.states, snapshot.problems, snapshot.answers, snapshot.note
                if content != before:
                    console.print(LiveView(snapshot))
                    console.print()
                before = content
        return snapshot.finished == snapshot.total
    finally:
        observer.answers.close()


def _read_snapshots(observer: StudyObserver) -> Iterator[StudySnapshot]:
    """Snapshots from the records, until nothing is left to do."""
    while True:
        observer.read_records()
        snapshot = observer.take_snapshot()
        in_progress = observer.driver or any(snapshot.states[state] for state in UNFINISHED)
        ended = snapshot.finished == snapshot.total or not in_progress
        if ended and snapshot.finished:  # what is shown last has the answers of all results
            observer.answers.finish(observer.finished)
            snapshot = observer.take_snapshot()
        note = "nothing is left to do; `report` shows the answers" if ended else "no driver is running"
        yield replace(snapshot, note=observer.driver or note)
        if ended:
            return
        time.sleep(observer.pause)
