"""A page that compares several studies: verdicts, effects, coverage, and the settings in which they differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.page import load_templates, place_zero
from study.analysis.report.registry import answer_questions
from study.analysis.report.tables import REPORT_STATES
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import Measure
from study.record.io import flatten, write_bytes
from study.record.layout import StudyFolder

# The keys of a study file that are compared: all except the study's name and texts and the sections
# `run`, `launch` and `tracking`.
COMPARED_KEYS = ("scale", "base", "factors", "joint", "blocks", "replicates", "seeds", "start", "search", "analysis")


@dataclass(frozen=True, kw_only=True)
class ComparedStudy:
    """One of the studies on the page.

    label: its name, or its path where several have the same name. report: the address of its report, relative to the
    page; empty if it has none.
    """

    label: str
    report: str
    records: StudyRecords
    answers: Mapping[str, Answer]


@dataclass(frozen=True, kw_only=True)
class SharedEffect:
    """An effect that several studies measure, by the studies' labels."""

    comparison: str
    by_study: Mapping[str, Effect]

    @property
    def estimates(self) -> list[Estimate]:
        return [effect.estimate for effect in self.by_study.values()]


def write_comparison(folder: StudyFolder, others: Sequence[StudyFolder]) -> Path:
    """Writes `compare.html` into the first study's report; returns its path. Works on studies of any completeness.

    Raises `UserError` if one of the folders holds no study.
    """
    records = [load_study_records(each) for each in (folder, *others)]
    names = [each.study.name for each in records]
    studies = [
        ComparedStudy(
            label=each.study.name if names.count(each.study.name) == 1 else os.fspath(each.folder.path),
            report=_find_report(each.folder, folder.report), records=each, answers=answer_questions(each),
        )
        for each in records
    ]  # fmt: skip
    page = folder.report / "compare.html"
    write_bytes(page, render_comparison(studies).encode())
    return page


def _find_report(folder: StudyFolder, page_folder: Path) -> str:
    page = folder.report / "report.html"
    return quote(os.path.relpath(page, page_folder)) if page.is_file() else ""


def render_comparison(studies: Sequence[ComparedStudy]) -> str:
    """The page, which loads nothing from elsewhere and has no script."""
    questions = list(dict.fromkeys(name for study in studies for name in study.answers))
    titles = {name: study.answers[name].title for study in reversed(studies) for name in study.answers}
    effects = {name: find_shared_effects(studies, name) for name in questions}
    occurring = {name for each in effects.values() for name in each}
    settings = {study.label: _list_settings(study.records) for study in studies}
    states = {state for study in studies for state in study.records.trials["state"]}
    return load_templates().get_template("compare.html.j2").render(
        studies=studies, questions=questions, titles=titles, effects=effects,
        zeros={
            name: place_zero([each for shared in group for each in shared.estimates] for group in by_measure.values())
            for name, by_measure in effects.items()
        },
        measures={name: measure for name, measure in _collect_measures(studies).items() if name in occurring},
        differing=find_differing_settings(settings), states=[state for state in REPORT_STATES if state in states],
        counts={study.label: study.records.trials["state"].value_counts().to_dict() for study in studies},
    )  # fmt: skip


def find_shared_effects(studies: Sequence[ComparedStudy], question: str) -> dict[str, list[SharedEffect]]:
    """The effects of a question that at least two studies have, by measure in the order of the report."""
    found: dict[tuple[str, str], dict[str, Effect]] = {}
    for study in studies:
        for effect in study.answers[question].effects if question in study.answers else ():
            found.setdefault((effect.measure.name, effect.comparison), {})[study.label] = effect
    shared: dict[str, list[SharedEffect]] = {measure: [] for measure in _collect_measures(studies)}
    for (measure, comparison), by_study in found.items():
        if len(by_study) > 1:
            shared[measure].append(SharedEffect(comparison=comparison, by_study=by_study))
    return {measure: effects for measure, effects in shared.items() if effects}


def find_differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings that differ between studies, by key, then by study; None where a study does not have the key."""
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    rows = {key: {label: each.get(key) for label, each in settings.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def _collect_measures(studies: Sequence[ComparedStudy]) -> dict[str, Measure]:
    return {name: measure for study in studies for name, measure in study.records.measures.items()}


def _list_settings(records: StudyRecords) -> dict[str, Any]:
    dumped = records.study.model_dump(mode="json", include=set(COMPARED_KEYS))
    made = {name: records.provenance.get(name) for name in ("commit", "python", "versions")}
    return flatten({**{key: dumped[key] for key in COMPARED_KEYS}, "made with": made})
