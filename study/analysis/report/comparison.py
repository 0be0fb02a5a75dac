"""Several studies side by side on one page: verdicts, effects, coverage, and the settings in which they differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.page import load_templates
from study.analysis.report.registry import answer_questions
from study.analysis.report.tables import STATES
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import Measure
from study.record.io import write_bytes
from study.record.layout import StudyFolder

# What a study is, by key of its file: not what it is called, nor where and how it runs.
SCIENCE = ("scale", "base", "factors", "joint", "blocks", "replicates", "start", "search", "analysis")


@dataclass(frozen=True, kw_only=True)
class ComparedStudy:
    """One of the studies. label: its name, or its path where several have that name."""

    label: str
    records: StudyRecords
    answers: Mapping[str, Answer]


@dataclass(frozen=True, kw_only=True)
class SharedEffect:
    """An effect that several studies measure, by label of the study."""

    comparison: str
    by_study: Mapping[str, Effect]

    @property
    def estimates(self) -> list[Estimate]:
        return [effect.estimate for effect in self.by_study.values()]


def write_comparison(folder: StudyFolder, others: Sequence[StudyFolder]) -> Path:
    """Writes `compare.html` into the first study's report; returns its path. Works on any part of each study.

    Raises `UserError` where one of the folders is no study.
    """
    records = [load_study_records(each) for each in (folder, *others)]
    names = [each.study.name for each in records]
    sides = [
        ComparedStudy(
            label=each.study.name if names.count(each.study.name) == 1 else os.fspath(each.folder.path),
            records=each, answers=answer_questions(each),
        )
        for each in records
    ]  # fmt: skip
    page = folder.report / "compare.html"
    write_bytes(page, render_comparison(sides).encode())
    return page


def render_comparison(sides: Sequence[ComparedStudy]) -> str:
    """The page; everything it shows is inside it, and it has no script."""
    questions = list(dict.fromkeys(name for side in sides for name in side.answers))
    titles = {name: side.answers[name].title for side in reversed(sides) for name in side.answers}
    effects = {name: shared_effects(sides, name) for name in questions}
    occurring = {name for each in effects.values() for name in each}
    settings = {side.label: _settings(side.records) for side in sides}
    states = {state for side in sides for state in side.records.trials["state"]}
    return load_templates().get_template("compare.html.j2").render(
        sides=sides, questions=questions, titles=titles, effects=effects,
        measures={name: measure for name, measure in _all_measures(sides).items() if name in occurring},
        differing=differing_settings(settings), states=[state for state in STATES if state in states],
        counts={side.label: side.records.trials["state"].value_counts().to_dict() for side in sides},
    )  # fmt: skip


def shared_effects(sides: Sequence[ComparedStudy], question: str) -> dict[str, list[SharedEffect]]:
    """The effects of a question that at least two studies have, by measure in the order of the report."""
    found: dict[tuple[str, str], dict[str, Effect]] = {}
    for side in sides:
        for effect in side.answers[question].effects if question in side.answers else ():
            found.setdefault((effect.measure.name, effect.comparison), {})[side.label] = effect
    shared: dict[str, list[SharedEffect]] = {measure: [] for measure in _all_measures(sides)}
    for (measure, comparison), by_study in found.items():
        if len(by_study) > 1:
            shared[measure].append(SharedEffect(comparison=comparison, by_study=by_study))
    return {measure: effects for measure, effects in shared.items() if effects}


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all studies: by key, then by study; None where a study lacks the key."""
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    rows = {key: {label: each.get(key) for label, each in settings.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def _all_measures(sides: Sequence[ComparedStudy]) -> dict[str, Measure]:
    return {name: measure for side in sides for name, measure in side.records.measures.items()}


def _settings(records: StudyRecords) -> dict[str, Any]:
    dumped = records.study.model_dump(mode="json", include=set(SCIENCE))
    made = {name: records.provenance.get(name) for name in ("commit", "python", "versions")}
    return _flatten({**{key: dumped[key] for key in SCIENCE}, "made with": made})


def _flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"base": {"depth": 8}}` as `{"base.depth": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
