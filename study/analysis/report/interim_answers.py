"""The answers as they stand, in the few lines that a terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import load_study_records
from study.analysis.report.registry import QUESTIONS
from study.analysis.wording import format_number, split_sentences
from study.record.layout import StudyFolder

LINES = 8  # of main numbers, and of what would settle an answer


def compute_interim_answers(folder: StudyFolder) -> dict[str, Any]:
    """Of each question of a study its verdict and its headline effects; plain values.

    `{"n": finished trials, "confidence": 0.95, "questions": [{"name", "verdict", "effects": [line, ...]}]}`
    """
    records = load_study_records(folder)
    questions = []
    for name in records.study.analysis.questions:
        answer = QUESTIONS[name].answer(records)
        effects = [_say(effect) for effect in headlines(answer.effects)]
        questions.append({"name": name, "verdict": answer.verdict, "effects": effects})
    return {"n": records.n_finished, "confidence": records.study.analysis.confidence, "questions": questions}


def format_answer(name: str, answer: Answer) -> list[str]:
    """An answer for the end of a run: its verdict, its first sentence, the main numbers, and what would settle it."""
    measured = [item for item in answer.effects if item.measure.headline and item.estimate.value is not None]
    shown = [f"  {_say(effect)}" for effect in measured[:LINES]]
    if len(measured) > LINES:
        shown.append(f"  and {len(measured) - LINES} more in the report")
    needs = [f"  it would take {need}" for need in answer.needs[:LINES]]
    return [f"{name}: {answer.verdict}", f"  {split_sentences(answer.answer)[0]}", *shown, *needs]


def headlines(effects: Sequence[Effect]) -> list[Effect]:
    """The lowest and the highest number of the first headline measure: what decides a verdict is at an end."""
    measured = [item for item in effects if item.measure.headline and item.estimate.value is not None]
    first = sorted(
        (item for item in measured if item.measure == measured[0].measure), key=lambda item: item.estimate.value or 0.0
    )
    return [first[0], first[-1]] if len(first) > 1 else first


def _say(effect: Effect) -> str:
    """`+0.012 (0.004 to 0.020, n = 4) validation accuracy, sn - bn`: the number first, which no terminal cuts."""
    measure, estimate = effect.measure, effect.estimate
    assert estimate.value is not None
    value, reach = format_number(estimate.value, sign=measure.line == 0), "no interval"
    if estimate.low is not None and estimate.high is not None:
        reach = f"{format_number(estimate.low)} to {format_number(estimate.high)}"
    return f"{value} ({reach}, n = {estimate.n}) {measure.label}, {effect.comparison}"
