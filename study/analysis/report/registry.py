"""The questions that a report can answer. A question is registered here, and nowhere else in the analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from study.analysis.questions.answers import Answer, Effect, Judgement
from study.analysis.questions.impacts import answer_impacts, explore_impacts, judge_impacts
from study.analysis.questions.robustness import Robustness
from study.analysis.questions.tasks import answer_tasks, explore_tasks, judge_tasks
from study.analysis.questions.useful import answer_useful, judge_useful
from study.analysis.questions.useful_robustness import explore_useful
from study.analysis.questions.verdicts import OPEN
from study.analysis.records import ENDED, StudyRecords
from study.analysis.report.figure_index import draw_impacts, draw_tasks, draw_useful
from study.analysis.wording import format_verdict
from study.config.wording import format_plural
from study.plan.analysis_plan import format_changes


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a question is answered and shown.

    answer: works on any part of a study. judge: its verdicts alone. explore: what other analyses would have said; only
    for a report of a finished study, because it takes as long as an answer.
    draw: the figures for the rows of its table that have a value.
    example: a study of configs/studies that asks it.
    """

    answer: Callable[[StudyRecords], Answer]
    judge: Callable[[StudyRecords], Judgement]
    explore: Callable[[StudyRecords], Robustness]
    draw: Callable[[StudyRecords, Sequence[Effect]], Iterator[go.Figure]]
    example: str


# By the names that a study gives under `analysis.questions` (study/config/schema.py).
QUESTIONS: Mapping[str, Question] = {
    "useful": Question(
        answer=answer_useful, judge=judge_useful, explore=explore_useful, draw=draw_useful, example="distinct"
    ),
    "impacts": Question(
        answer=answer_impacts, judge=judge_impacts, explore=explore_impacts, draw=draw_impacts, example="impacts"
    ),
    "tasks": Question(answer=answer_tasks, judge=judge_tasks, explore=explore_tasks, draw=draw_tasks, example="tasks"),
}


def answer_questions(records: StudyRecords) -> dict[str, Answer]:
    """The answers to the questions that the study asks, by name."""
    found: dict[str, Answer] = {name: QUESTIONS[name].answer(records) for name in records.study.analysis.questions}
    if records.is_interim:
        return {name: withhold_verdict(answer, records) for name, answer in found.items()}
    if records.changed_after_results:
        return {name: mark_post_hoc(name, answer, records) for name, answer in found.items()}
    return found


def add_robustness(answers: Mapping[str, Answer], records: StudyRecords) -> dict[str, Answer]:
    """The answers with what other analyses would have said. Interim answers have no verdict and stay unchanged."""
    return {
        name: answer if answer.interim else replace(answer, robustness=QUESTIONS[name].explore(records))
        for name, answer in answers.items()
    }


def withhold_verdict(answer: Answer, records: StudyRecords) -> Answer:
    """The answer of a study whose planned trials have not all ended: numbers, and no verdict.

    A verdict that is given as soon as the numbers allow it is wrong more often than its confidence says.
    """
    n_left = records.n_planned - int(records.trials["state"].isin(ENDED).sum())
    planned = format_plural(records.n_planned, "planned trial has", "planned trials have")
    n_damaged = int(records.trials["state"].eq("damaged").sum())
    damaged = f" ({n_damaged} damaged, to be trained again by the next run)" if n_damaged else ""
    return replace(
        answer, interim=True, verdict=OPEN, factors=dict.fromkeys(answer.factors, OPEN),
        # Sentences, and what would settle the question, would give the verdict away; the numbers are in the table.
        answer=f"Interim: {n_left} of {planned} not ended{damaged}, so there is no verdict yet.",
        needs=[f"the end of the other {format_plural(n_left, 'planned trial')}"],
    )  # fmt: skip


def mark_post_hoc(name: str, answer: Answer, records: StudyRecords) -> Answer:
    """The answer of a study whose plan was changed after there were results, in what decides: it opens with that.

    Among many margins and levels there is nearly always one that gives a verdict.
    """
    as_planned = records.as_planned
    planned = OPEN if as_planned.is_interim else QUESTIONS[name].judge(as_planned).verdict
    changes = format_changes(records.changed_after_results)
    note = f"Post hoc, because the plan was changed after there were results ({changes}). The verdict as planned is"
    return replace(answer, planned_verdict=planned, answer=f'{note} "{format_verdict(planned)}". {answer.answer}')


def draw_figures(name: str, records: StudyRecords, answer: Answer) -> list[go.Figure]:
    """The figures of the question `name`, for a study of any completeness."""
    return list(QUESTIONS[name].draw(records, [row for row in answer.effects if row.estimate.value is not None]))
