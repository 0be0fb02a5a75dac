"""Publishes a study's pages on W&B; without a login or a server their specifications are written to files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from study.analysis.report.report import Report
from study.config.errors import UserError
from study.config.schema import StudyConfig, TrackingConfig
from study.dashboard.summary import write_summary
from study.dashboard.sync import check_wanted
from study.plan.loading import read_study_file
from study.record.io import read_json, write_bytes, write_json
from study.record.layout import StudyFolder
from study.record.wandb_names import StudyRuns, name_runs
from study.record.wandb_server import Connection, ServerError, ask_server, format_error

# The fields of a page that are replaced when it is saved again; all others keep their value on W&B.
SAVED_FIELDS = ("name", "sections", "settings", "runset_settings", "title", "description", "blocks", "width")


def publish(folder: StudyFolder, study: StudyConfig) -> dict[str, str]:
    """Creates or updates the workspace, the report and the summary run of a study; returns the pages' URLs by kind.

    The specifications of the pages are written to `report/dashboard/*.json` in any case. Raises `UserError` if the
    folder holds no trial, if W&B is disabled, or if it cannot be reached or refuses.

    study: the recorded one, which may have other settings of `tracking`.
    """
    report, tracking = Report(folder), study.tracking
    if not any(folder.trials()):
        raise UserError(f"{folder.path}: no trial yet; run the study first")
    check_wanted(folder, tracking, "dashboard")
    # Not the study's own mode: trials that trained offline may have been synced since.
    connection, problem = _connect(tracking)
    runs = name_runs(study, read_study_file(folder.config).study_id, connection.project_url)
    project = f"{connection.entity or tracking.entity or 'your entity'}/{tracking.project}"
    with _wandb_errors_in_one_line(f"the summary run of {project} cannot be written"):
        write_summary(report, runs, connection)
    pages = _build_pages(report, runs, connection.entity or tracking.entity or "")
    _write_specs(folder.report / "dashboard", pages)
    if connection.mode != "online":
        raise UserError(
            f"dashboard: {problem}. Then run the verbs `sync` and `dashboard`. The specifications of the pages are in "
            f"{folder.report / 'dashboard'}"
        )
    with _wandb_errors_in_one_line(f"the pages of {project} cannot be saved"):
        return _save_pages(folder, pages)


def _connect(tracking: TrackingConfig) -> tuple[Connection, str]:
    """The connection to the server, and why it is not online."""
    mode = os.environ.get("WANDB_MODE")
    if tracking.mode != "online" and mode in ("offline", "dryrun"):
        return Connection(mode="offline"), f"WANDB_MODE={mode} is set; unset it"
    try:
        return ask_server(tracking), ""
    except ServerError as error:
        return Connection(mode="offline"), f"W&B: {error}"


@contextmanager
def _wandb_errors_in_one_line(problem: str) -> Iterator[None]:
    """Turns any error of wandb and its HTTP client into a `UserError` of one line, which starts with `problem`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"dashboard: {problem}: W&B says: {format_error(error)}") from error


def _build_pages(report: Report, runs: StudyRuns, entity: str) -> dict[str, Any]:
    """The report comes first, because saving a report creates a missing project."""
    from study.dashboard.pages import build_report, build_workspace

    return {"report": build_report(report, runs, entity), "workspace": build_workspace(report, runs, entity)}


def _write_specs(path: Path, pages: dict[str, Any]) -> None:
    for kind, page in pages.items():
        spec = page._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
        write_bytes(path / f"{kind}.json", spec.encode())


def _save_pages(folder: StudyFolder, pages: dict[str, Any]) -> dict[str, str]:
    """Saves every page, replacing its earlier version, and records its URL in the study's folder."""
    for kind, page in pages.items():
        known = read_json(folder.dashboard) or {}
        write_json(folder.dashboard, {**known, kind: _save_page(page, known.get(kind))})
    known = read_json(folder.dashboard) or {}
    return {kind: known[kind] for kind in pages}


def _save_page(page: Any, url: str | None) -> str:
    saved = _find_saved_page(page, url)
    for name in SAVED_FIELDS:
        if hasattr(page, name):
            setattr(saved, name, getattr(page, name))
    saved.save()
    # A report's URL contains its title unquoted: a question mark would end the path and cut off the id behind it.
    start, reports, name = str(saved.url).partition("/reports/")
    return start + reports + quote(name, safe="=")


def _find_saved_page(page: Any, url: str | None) -> Any:
    """The page that was saved at `url`, if it still exists in the same project; otherwise the new page."""
    if url is None:
        return page
    try:
        found = type(page).from_url(url)
    except (ValueError, TypeError):  # it was deleted; for a report the library raises TypeError
        return page
    return found if (found.entity, found.project) == (page.entity, page.project) else page
