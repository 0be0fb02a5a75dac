"""The plan of the analysis: everything that decides how answers are computed, resolved before there are results.

`study.yaml` holds the plan of the first run and, with their dates, the changes that later runs of the folder made. A
plan is a mapping of plain values; its hash is SHA-256 over its canonical JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from study.config.errors import UserError, format_value
from study.config.schema import StudyConfig
from study.record.io import flatten

LAST_EPOCH = "last epoch"  # whose results count
ALIGNMENT: Final = "stage and place"  # how layers of different networks are matched
DISTANCE = "Jensen-Shannon"  # between what two networks chose
DIVERGENCE = (
    "differences are over pairs that both finished; a norm that diverged more often in any cell gets no verdict in its "
    "favor; a cell in which every run of a norm diverged counts that norm at chance level"
)

_SAMPLE_KEYS = ("replicates", "search_trials")
"""The keys of a plan that say how many runs there are. Answers after they changed are another look."""

DECIDING = ("metric", "margins", "confidence", "tuned")
"""The keys of a plan whose values are settings and decide verdicts. Verdicts after they changed are post hoc."""

Change = tuple[Any, Any]
"""The value of a key before and now; None where the plan does not have the key."""


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """A change of the plan. date: as in `study.yaml`. results: number of finished results at that time."""

    date: str
    changes: Mapping[str, Change]
    results: int

    @property
    def changes_runs(self) -> bool:
        """Whether the planned runs were changed after results existed."""
        return self.results > 0 and changes_runs(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The amendment as `study.yaml` holds it."""
        changes = {key: list(change) for key, change in self.changes.items()}
        return {"date": self.date, "changes": changes, "results": self.results}


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The plan that `study.yaml` holds, and its amendments.

    created: when it was recorded. results: number of finished results at that time, 0 for a plan before the data.
    """

    hash: str
    created: str
    plan: Mapping[str, Any]
    results: int = 0
    amendments: Sequence[Amendment] = ()

    @property
    def is_before_data(self) -> bool:
        return self.results == 0

    @property
    def before_results(self) -> dict[str, Any]:
        """The plan with the amendments that were made before there were results."""
        return self._amend([amendment for amendment in self.amendments if not amendment.results])

    @property
    def latest(self) -> dict[str, Any]:
        """The plan with all amendments."""
        return self._amend(self.amendments)

    def _amend(self, amendments: Sequence[Amendment]) -> dict[str, Any]:
        plan = dict(self.plan)
        for amendment in amendments:
            for key, (_, now) in amendment.changes.items():
                if now is None:
                    plan.pop(key, None)
                else:
                    plan[key] = now
        return plan

    def to_dict(self) -> dict[str, Any]:
        """The sections `analysis_plan` and `amendments` of `study.yaml`."""
        plan = {"hash": self.hash, "created": self.created, "results": self.results, "plan": dict(self.plan)}
        return {"analysis_plan": plan, "amendments": [amendment.to_dict() for amendment in self.amendments]}


def resolve_analysis_plan(study: StudyConfig) -> dict[str, Any]:
    """Returns everything that decides how the study's answers are computed, as plain values."""
    resolved = study.model_dump(mode="json")
    return {
        "questions": resolved["analysis"]["questions"],
        "metric": study.metric,
        "margins": resolved["analysis"]["margins"],
        "confidence": study.analysis.confidence,
        "tuned": resolved["analysis"]["tuned"],
        "replicates": study.replicates,
        "factors": resolved["factors"],
        "blocks": resolved["blocks"],
        "comparisons": {factor: _find_compared(levels) for factor, levels in resolved["factors"].items()},
        **({"search_trials": study.search.n_trials} if study.search else {}),
        "checkpoint": LAST_EPOCH,
        "alignment": ALIGNMENT,
        "distance": DISTANCE,
        "divergence": DIVERGENCE,
    }


def hash_plan(plan: Mapping[str, Any]) -> str:
    """Returns the SHA-256 hash of a plan in canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """Returns the keys in which two plans differ, each with its value in both."""
    keys = dict.fromkeys([*before, *now])
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def changes_runs(changes: Mapping[str, Change]) -> bool:
    """Whether the planned runs change: replicates, levels, blocks, or the number of trials of a search.

    Fewer count like more: whoever stops where the numbers look good has looked.
    """
    return any(key in changes for key in (*_SAMPLE_KEYS, "factors", "blocks"))


def find_removed(changes: Mapping[str, Change]) -> dict[str, Change]:
    """Returns the changes that take planned runs away: fewer replicates, levels that are gone, other blocks."""
    return {
        key: (before, now) for key, (before, now) in changes.items()
        if (key == "replicates" and now < before) or key == "blocks"
        or (key == "factors" and any(level not in now.get(name, ()) for name in before for level in before[name]))
    }  # fmt: skip


def format_changes(changes: Mapping[str, Change]) -> str:
    """Returns `replicates from 4 to 8, margins.accuracy from 0.005 to 0.01`: only the parts that differ."""
    parts = []
    for key, (before, now) in changes.items():
        leaves = [flatten({key: value}) for value in (before, now)]
        for name in dict.fromkeys(name for each in leaves for name in each):
            old, new = (each.get(name) for each in leaves)
            if old != new:
                parts.append(f"{name} from {_format_value(old)} to {_format_value(new)}")
    return ", ".join(parts)


def record_plan(plan: Mapping[str, Any], date: str, results: int) -> PlanRecord:
    """Returns the record of a plan without amendments."""
    return PlanRecord(hash=hash_plan(plan), created=date, plan=plan, results=results)


def amend_plan(record: PlanRecord, plan: Mapping[str, Any], date: str, results: int) -> PlanRecord:
    """Returns the record with an amendment; the record itself if the plan is its latest one."""
    changes = find_changes(record.latest, plan)
    if not changes:
        return record
    amendment = Amendment(date=date, changes=changes, results=results)
    return replace(record, amendments=[*record.amendments, amendment])


def parse_plan_record(content: Mapping[str, Any], source: str) -> PlanRecord | None:
    """Returns the plan of `study.yaml`; None where a study was run before plans were recorded.

    Raises `UserError` if a section is damaged. source: the file, named in errors.
    """
    if "analysis_plan" not in content and "amendments" not in content:
        return None
    section = content.get("analysis_plan")
    if not isinstance(section, dict):
        raise _damaged(source, "analysis_plan", "expected hash, created and plan")
    plan = section.get("plan")
    if not isinstance(plan, dict) or not _has_text_keys(plan):
        raise _damaged(source, "analysis_plan.plan", "expected keys and values")
    for key in _SAMPLE_KEYS:
        if not _is_count(plan.get(key, 0)):
            value = format_value(plan[key])
            raise _damaged(source, f"analysis_plan.plan.{key}", f"expected a whole number, got {value}")
    created, results = section.get("created"), section.get("results", 0)
    if not isinstance(created, str):
        raise _damaged(source, "analysis_plan.created", f"expected a date in quotes, got {format_value(created)}")
    if not _is_count(results):
        raise _damaged(source, "analysis_plan.results", f"expected a whole number, got {format_value(results)}")
    try:
        digest = hash_plan(plan)
    except (TypeError, ValueError) as error:
        raise _damaged(source, "analysis_plan.plan", str(error)) from None
    if section.get("hash") != digest:
        raise _damaged(source, "analysis_plan.hash", "it is not the hash of the plan beside it")
    entries = content.get("amendments", [])
    if not isinstance(entries, list):
        raise _damaged(source, "amendments", "expected a list")
    amendments = [_parse_amendment(entry, f"amendments[{number}]", source) for number, entry in enumerate(entries)]
    return PlanRecord(hash=digest, created=created, plan=plan, results=results, amendments=amendments)


def _parse_amendment(entry: Any, where: str, source: str) -> Amendment:
    if not isinstance(entry, dict) or not isinstance(entry.get("date"), str):
        raise _damaged(source, where, "expected date, changes and results")
    changes = entry.get("changes")
    results: Any = entry.get("results")
    if not isinstance(changes, dict) or not _has_text_keys(changes):
        raise _damaged(source, f"{where}.changes", "expected keys and values")
    for key, change in changes.items():
        if not isinstance(change, list) or len(change) != 2:
            raise _damaged(source, f"{where}.changes.{key}", "expected the value before and the value now")
        if key in _SAMPLE_KEYS and not all(value is None or _is_count(value) for value in change):
            raise _damaged(source, f"{where}.changes.{key}", f"expected whole numbers, got {format_value(change)}")
    if not _is_count(results):
        raise _damaged(source, f"{where}.results", f"expected a whole number, got {format_value(results)}")
    return Amendment(date=entry["date"], changes={key: tuple(pair) for key, pair in changes.items()}, results=results)


def _format_value(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def _damaged(source: str, where: str, problem: str) -> UserError:
    return UserError(f"{source}: {where}: {problem}; the file is damaged")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _has_text_keys(mapping: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) for key in mapping)


def _find_compared(levels: Any) -> str:
    """Which levels of a factor are compared: of numbers the lowest with the highest, otherwise every pair."""
    if isinstance(levels, dict):
        return f"{levels['low']} with {levels['high']}"
    numbers = [level for level in levels if isinstance(level, (int, float)) and not isinstance(level, bool)]
    if len(levels) < 2:
        return "one level"
    return f"{min(numbers)} with {max(numbers)}" if len(numbers) == len(levels) else "every pair of levels"
