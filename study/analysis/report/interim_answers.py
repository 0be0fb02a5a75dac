"""Answers for the terminal: a few lines for the live view, and the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import load_study_records
from study.analysis.report.registry import QUESTIONS
from study.analysis.wording import format_number, split_sentences
from study.record.layout import StudyFolder

MAX_LINES = 8  # of main numbers, and of needs


def compute_interim_answers(folder: StudyFolder) -> dict[str, Any]:
    """The verdict and the headline effects of each question of a study, as plain values.

    `{"n": finished trials, "confidence": 0.95, "questions": [{"name", "verdict", "effects": [line, ...]}]}`
    """
    records = load_study_records(folder)
    questions = []
    for name in records.study.analysis.questions:
        answer = QUESTIONS[name].answer(records)
        effects = [_format_effect(effect) for effect in _select_headlines(answer.effects)]
        questions.append({"name": name, "verdict": answer.verdict, "effects": effects})
    return {"n": records.n_finished, "confidence": records.study.analysis.confidence, "questions": questions}


def format_answer(name: str, answer: Answer) -> list[str]:
    """The lines of an answer at the end of a run: verdict, first sentence, main numbers, and what would settle it."""
    measured = [item for item in answer.effects if item.measure.headline and item.estimate.value is not None]
    shown = [f"  {_format_effect(effect)}" for effect in measured[:MAX_LINES]]
    if len(measured) > MAX_LINES:
        shown.append(f"  and {len(measured) - MAX_LINES} more in the report")
    needs = [f"  it would take {need}" for need in answer.needs[:MAX_LINES]]
    return [f"{name}: {answer.verdict}", f"  {split_sentences(answer.answer)[0]}", *shown, *needs]


def _select_headlines(effects: Sequence[Effect]) -> list[Effect]:
    """The lowest and the highest number of the first headline measure: one of the two decides a verdict."""
    measured = [item for item in effects if item.measure.headline and item.estimate.value is not None]
    first = sorted(
        (item for item in measured if item.measure == measured[0].measure), key=lambda item: item.estimate.value or 0.0
    )
    return [first[0], first[-1]] if len(first) > 1 else first


def _format_effect(effect: Effect) -> str:
    """`+0.012 (0.004 to 0.020, n = 4) validation accuracy, sn - bn`: the number first, as terminals cut at the end."""
    measure, estimate = effect.measure, effect.estimate
    assert estimate.value is not None
    value, reach = format_number(estimate.value, sign=measure.line == 0), "no interval"
    if estimate.low is not None and estimate.high is not None:
        reach = f"{format_number(estimate.low)} to {format_number(estimate.high)}"
    return f"{value} ({reach}, n = {estimate.n}) {measure.label}, {effect.comparison}"
