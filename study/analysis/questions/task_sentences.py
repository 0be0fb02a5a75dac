"""The sentences of question 3 and its rule. Findings in, text out; nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.questions.factor_sentences import format_effect_rule
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.wording import format_estimate, format_number, join_words


def open_tasks(verdict: Verdict, names: Sequence[str], moving: Sequence[str]) -> str:
    """The first sentence of question 3; `moving`: those of the names that move the choice."""
    return {
        "supported": f"Yes, in this study: backbones choose differently by {join_words(moving or ['none'])}.",
        "not supported": f"No, in this study: backbones choose alike whatever the {join_words(names or ['none'])}.",
        "not enough evidence": "It cannot be said yet whether tasks and data sets choose differently.",
    }[verdict]


def format_tasks_rule(together: str, records: StudyRecords) -> str:
    """The rule of question 3."""
    return (
        f"{format_effect_rule(records)} Tasks and data sets prefer different normalizers if task, or dataset, moves "
        f"what backbones choose; evidence against needs both, where both vary, to lie below the margin. Where tasks "
        f"have no data set in common, the two cannot be separated and count as one factor, {together}. Heads, compared "
        f"within their task, and transfer are shown and do not decide."
    )


def format_preferences(means: pd.DataFrame) -> str:
    """The mean weights of each setting: one row per setting, one column per normalizer."""
    each = [
        f"{setting} {', '.join(f'{name} {format_number(weight, 2)}' for name, weight in row.dropna().items())}"
        for setting, row in means.iterrows()
    ]
    return f"Mean weights of the backbone: {'; '.join(each)}."


def format_head_effects(rows: Sequence[Effect], confidence: float) -> list[str]:
    """The displacements of heads."""
    said = "; ".join(
        f"{row.comparison} {format_estimate(row.estimate, confidence)}"
        for row in rows if row.estimate.value is not None
    )  # fmt: skip
    return [f"How far heads are moved, within their task: {said}."] if said else []


def format_transfer(rows: Sequence[Effect], confidence: float) -> list[str]:
    """How far transfer moves the choice, and what it leaves of the effects of task and data set."""
    titles = {
        "transfer_distance": "How far fine-tuning moves what backbones chose",
        "effect_after": "Displacements between fine-tuned networks",
    }
    said = {
        measure: "; ".join(
            f"{row.comparison} {format_estimate(row.estimate, confidence)}"
            for row in rows if row.measure.name == measure and row.estimate.value is not None
        )
        for measure in titles
    }  # fmt: skip
    return [f"{titles[measure]}: {text}." for measure, text in said.items() if text]
