"""What a report says about the plan of its analysis: as planned, or every later change with its date."""

from __future__ import annotations

from typing import Any

from study.analysis.records import PlanChanges, StudyRecords
from study.analysis.wording import format_confidence
from study.config.wording import format_plural
from study.plan.analysis_plan import format_changes


def format_plan(records: StudyRecords) -> list[str]:
    """Sentences for the head of a page; the first one says whether the analysis is as planned."""
    lines = _format_plan_changes(records.plan_changes)
    if records.look > 1:
        lines.append(
            f"This is look {records.look} at the data, because the planned runs were changed after results existed. "
            f"Its intervals have a confidence of {format_confidence(records.confidence)}, so that false verdicts of "
            "all looks together stay below twice the rate of a single look."
        )
    return lines


def build_plan_section(records: StudyRecords) -> dict[str, Any]:
    """The same as plain values, for `answers.json`. date: None for a change that no run has recorded.

    The date of the plan itself is in `study.yaml` alone: two runs of one study have the same answers, byte for byte.
    """
    changes, plan = records.plan_changes, records.plan
    dated = [(each.date, each.results, each.changes) for each in changes.amendments]
    return {
        "as_planned": changes.is_as_planned, "hash": plan and plan.hash, "results_before": plan and plan.results,
        "changes": [
            {"date": date, "results": results, "key": key, "before": before, "now": now}
            for date, results, changed in [*dated, (None, None, changes.unrecorded)]
            for key, (before, now) in changed.items()
        ],
        "look": records.look, "confidence": records.confidence,
    }  # fmt: skip


def _format_plan_changes(changes: PlanChanges) -> list[str]:
    plan = changes.recorded
    if plan is None:
        return ["No plan of the analysis was recorded before the data."]
    name, date = f"plan {plan.hash[:8]}", plan.created[:10]
    if changes.is_as_planned:
        return [f"The analysis is as planned ({name}, recorded {date})."]
    lines = [
        f"The analysis has changed since it was planned ({name}, recorded {date})." if plan.is_before_data
        else f"No plan of the analysis was recorded before the data: {name} was recorded {date}, with "
        f"{format_plural(plan.results, 'finished result')}."
    ]  # fmt: skip
    lines += [
        f"Changed on {each.date[:10]}, with {format_plural(each.results, 'finished result')}: "
        f"{format_changes(each.changes)}."
        for each in changes.amendments
    ]
    if changes.unrecorded:
        lines.append(f"Changed without a record of when: {format_changes(changes.unrecorded)}.")
    return lines
