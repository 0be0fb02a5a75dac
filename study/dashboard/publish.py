"""Puts a study's pages on W&B, or, without a login or a server, into files to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from study.analysis.report.report import Report
from study.config.errors import UserError
from study.dashboard.summary import write_summary
from study.record.io import read_json, write_bytes, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.record.wandb_mode import resolve_mode

# Of a page; all else of one that was saved before stays as it is there.
CONTENTS = ("name", "sections", "settings", "runset_settings", "title", "description", "blocks", "width")


def publish(folder: StudyFolder) -> dict[str, str]:
    """Makes or updates the workspace and the report of a study, and its summary run: the pages' addresses by kind.

    Whatever comes of it, what the pages are is in `report/dashboard/*.json`. Raises `UserError` where there is no
    study, no trial of it has a W&B run, W&B is out of reach, or refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    report = Report(folder)
    tracking = report.records.study.tracking
    _check_runs(folder)
    mode = resolve_mode(tracking.model_copy(update={"mode": "auto"}))  # what trained offline is synced now
    if mode == "disabled":
        raise UserError("dashboard: WANDB_MODE=disabled is set; unset it")
    with _in_one_line():
        write_summary(report, mode)
        entity = tracking.entity or (_default_entity() if mode == "online" else "")
    pages = _build(report, entity)
    _write_specs(folder.report / "dashboard", pages)
    if mode != "online":
        raise UserError(_advice(folder))
    with _in_one_line():
        return _save(folder, pages)


def _check_runs(folder: StudyFolder) -> None:
    trials = list(folder.trials())
    if not trials:
        raise UserError(f"{folder.path}: no trial yet; run the study first")
    if not any(_is_tracked(trial) for trial in trials):
        raise UserError(f"{folder.path}: no trial has a W&B run; they ran with tracking.mode: disabled")


def _is_tracked(trial: TrialFolder) -> bool:
    """By its record, or by the run itself: `wandb sync --clean` removes it, and older records do not name it."""
    where = (read_json(trial.environment) or {}).get("wandb") or {}
    return bool(where.get("run")) or any(trial.wandb.glob("*run-*"))


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What the library and its transport raise, of every kind, as one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"dashboard: W&B has refused it: {reason}") from error


def _default_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity)


def _build(report: Report, entity: str) -> dict[str, Any]:
    """The report first: to save it makes a project that is not there yet."""
    from study.dashboard.pages import build_report, build_workspace

    return {"report": build_report(report, entity), "workspace": build_workspace(report, entity)}


def _write_specs(path: Path, pages: dict[str, Any]) -> None:
    for kind, page in pages.items():
        spec = page._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
        write_bytes(path / f"{kind}.json", spec.encode())


def _advice(folder: StudyFolder) -> str:
    set_so = os.environ.get("WANDB_MODE")
    why = f"WANDB_MODE={set_so} is set" if set_so else "not logged in to W&B, or it does not answer"
    return (
        f"dashboard: {why}; do `wandb login`, then `wandb sync {folder.wandb}/offline-run-*`, then this again. "
        f"What it will make is in {folder.report / 'dashboard'}"
    )


def _save(folder: StudyFolder, pages: dict[str, Any]) -> dict[str, str]:
    """Saves every page, in place of the one that was saved before; remembers where."""
    for kind, page in pages.items():
        known = read_json(folder.dashboard) or {}
        write_json(folder.dashboard, {**known, kind: _save_page(page, known.get(kind))})
    known = read_json(folder.dashboard) or {}
    return {kind: known[kind] for kind in pages}


def _save_page(page: Any, url: str | None) -> str:
    saved = _find(page, url)
    for name in CONTENTS:
        if hasattr(page, name):
            setattr(saved, name, getattr(page, name))
    saved.save()
    # A report's address has its title, as it is: a question mark would end the path, and the id behind it be lost.
    start, reports, name = str(saved.url).partition("/reports/")
    return start + reports + quote(name, safe="=")


def _find(page: Any, url: str | None) -> Any:
    """The page that was saved at `url`, if it is still there and of the same project; else the new one."""
    if url is None:
        return page
    try:
        found = type(page).from_url(url)
    except (ValueError, TypeError):  # it was deleted; a report that is not there is read as None
        return page
    return found if (found.entity, found.project) == (page.entity, page.project) else page
