"""Answers in the few lines that a terminal has room for, while a study runs and at its end."""

from __future__ import annotations

from typing import Any

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.robustness import format_fragile_choices
from study.analysis.records import load_study_records
from study.analysis.report.registry import answer_questions
from study.analysis.wording import format_bounds, format_number, format_verdict, split_sentences
from study.record.layout import StudyFolder

MAX_LINES = 8  # of main numbers, and of what would settle an answer


def compute_interim_answers(folder: StudyFolder) -> dict[str, Any]:
    """The verdict, in the words of `format_verdict`, and the decisive effects of each question, as plain values.

    `{"n": finished trials, "confidence": 0.95, "questions": [{"name", "verdict", "effects": [line, ...]}]}`
    """
    records = load_study_records(folder)
    questions = []
    for name, answer in answer_questions(records).items():
        effects = [_format_judged(effect, answer) for effect in _find_extremes(_headline_effects(answer))]
        questions.append({"name": name, "verdict": format_verdict(answer.verdict, answer.interim), "effects": effects})
    return {"n": records.n_finished, "confidence": records.confidence, "questions": questions}


def format_answer(name: str, answer: Answer) -> list[str]:
    """Lines for the end of a run: verdict, first sentence, main numbers, and what would settle the answer."""
    effects = _headline_effects(answer)
    fragile = f" (fragile: {format_fragile_choices(answer.robustness)})" if answer.robustness and answer.fragile else ""
    lines = [
        f"{name}: {format_verdict(answer.verdict, answer.interim)}{fragile}", f"  {split_sentences(answer.answer)[0]}",
    ]  # fmt: skip
    lines += [f"  {_format_judged(effect, answer)}" for effect in effects[:MAX_LINES]]
    if len(effects) > MAX_LINES:
        lines.append(f"  and {len(effects) - MAX_LINES} more in the report")
    return lines + [f"  to settle this: {need}" for need in answer.needs[:MAX_LINES]]


def format_effect(effect: Effect) -> str:
    """`+0.012 (0.004 to 0.020, n = 4) validation accuracy, sn - bn`. A narrow terminal cuts the end, not the number."""
    measure, estimate = effect.measure, effect.estimate
    assert estimate.value is not None
    value, bounds = format_number(estimate.value, sign=measure.is_signed), format_bounds(estimate)
    counted = "" if estimate.n == 1 else f", n = {estimate.n}"  # without an interval, `bounds` says it
    return f"{value} ({bounds}{counted}) {measure.label}, {effect.comparison}"


def _format_judged(effect: Effect, answer: Answer) -> str:
    """The line of an effect; that of a factor's displacement ends with the verdict on the factor."""
    if answer.interim or effect.measure.name != "effect" or effect.comparison not in answer.factors:
        return format_effect(effect)
    return f"{format_effect(effect)}: {format_verdict(answer.factors[effect.comparison])}"


def _headline_effects(answer: Answer) -> list[Effect]:
    """The main numbers; of displacements, those in the distance's own unit, in which they are judged."""
    return [
        item for item in answer.effects
        if item.measure.headline and item.estimate.value is not None and item.measure.name != "effect_relative"
    ]  # fmt: skip


def _find_extremes(effects: list[Effect]) -> list[Effect]:
    """The effects with the lowest and the highest estimate of the first measure: one of them decides the verdict."""
    first = [item for item in effects if item.measure == effects[0].measure]
    first.sort(key=lambda item: item.estimate.value or 0.0)
    return [first[0], first[-1]] if len(first) > 1 else first
