"""Whether a plan can answer what it asks: what cannot be told apart, what moves along, how many replicates it takes.

Of cells and their levels alone, and of the spread that an earlier report has seen. Imports no torch.
"""

from __future__ import annotations

import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from study.config.schema import StudyConfig, TrialConfig
from study.plan.trials import PlannedTrial
from study.record.io import read_json
from study.record.layout import StudyFolder

POWER = 0.8
LEAST, BETTER = 3, 5  # replicates; a ratio has an interval from 3 on
SOUGHT_RATIO = 1.5  # a factor that moves choices so much further than seeds do is worth to be seen
MOST = 1000  # replicates
NAMED = 6  # fields in a line

Cells = Sequence[Mapping[str, Any]]


def find_problems(study: StudyConfig, trials: Sequence[PlannedTrial]) -> list[str]:
    """What keeps the plan from answering, or makes an answer mean something else; a line each."""
    planned = list({trial.trial_id: trial for trial in trials}.values())
    cells = [trial.levels for trial in planned]
    alone = [factor for factor in study.factors if len({repr(cell[factor]) for cell in cells}) == 1]
    aliases = find_aliases(cells)
    lines = [_warn_of_replicates(study.replicates)] if study.replicates < LEAST else []
    lines += [f"{' and '.join(names)} always change together: their effects cannot be told apart" for names in aliases]
    lines += [
        f"{factor}: what it moves cannot be told apart from what the other factors together do"
        for factor in find_confounded(cells) if not any(factor in names for names in aliases)
    ]  # fmt: skip
    if alone:
        lines.append(f"one level alone, so nothing is learned of: {', '.join(alone)}")
    return lines + [_say_moving(study, factor, moved) for factor, moved in find_moving(study, planned).items()]


def describe_design(study: StudyConfig, trials: Sequence[PlannedTrial], folder: StudyFolder) -> list[str]:
    """The numbers of the plan: balance of its cells, and the replicates that effects take; a line each."""
    cells = [trial.levels for trial in {trial.trial_id: trial for trial in trials}.values()]
    return [*_describe_balance(cells), *_describe_power(study, folder)]


def check_disk(needed: float, folder: StudyFolder) -> tuple[float, str]:
    """Bytes that are free where a study will lie, and a warning where it needs more."""
    place = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed < free:
        return free, ""
    return free, f"the disk of {place} has {format_bytes(free)} free; the study needs about {format_bytes(needed)}"


def format_bytes(count: float) -> str:
    """1_500_000 -> '1.5 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# ------------------------------------------------------------------------------------------ what can be told apart


def find_aliases(cells: Cells) -> list[tuple[str, ...]]:
    """Factors that split the cells in the same way: whenever one changes its level, so do the others."""
    splits: dict[tuple[int, ...], list[str]] = {}
    for factor in cells[0]:
        numbers = _number_levels(cells, factor)
        if max(numbers):
            splits.setdefault(numbers, []).append(factor)
    return [tuple(names) for names in splits.values() if len(names) > 1]


def find_confounded(cells: Cells) -> list[str]:
    """Factors whose main effect the design matrix (cells, levels) does not determine beside those of the others."""
    columns = {factor: _code_levels(_number_levels(cells, factor)) for factor in cells[0]}
    rank = _rank(list(columns.values()))
    return [
        factor for factor, own in columns.items()
        if rank - _rank([other for name, other in columns.items() if name != factor]) < own.shape[1]
    ]  # fmt: skip


def find_uncrossed(cells: Cells) -> list[tuple[str, str]]:
    """Pairs of factors of which not every level meets every level of the other: no interaction can be seen."""
    levels = {factor: {repr(cell[factor]) for cell in cells} for factor in cells[0]}
    return [
        (a, b) for a, b in combinations(levels, 2)
        if len({(repr(cell[a]), repr(cell[b])) for cell in cells}) < len(levels[a]) * len(levels[b])
    ]  # fmt: skip


def find_moving(study: StudyConfig, trials: Sequence[PlannedTrial]) -> dict[str, dict[str, list[Any]]]:
    """For each factor what else changes with it while all other factors stay, with its values.

    Fields of a trial, and the gradient batch, learning rate and steps that follow from them. Levels of a factor set
    other fields under `joint`, a start rule under `start.base`, and B changes G * B where the chunks are fixed.
    """
    rows = [_quantities(trial, study.factors) for trial in trials]
    varying = [name for name in rows[0] if len({repr(row[name]) for row in rows}) > 1]
    moving: dict[str, dict[str, list[Any]]] = {}
    for factor in study.factors:
        others = [name for name in study.factors if name != factor]
        groups: dict[str, list[dict[str, Any]]] = {}
        for trial, row in zip(trials, rows, strict=True):
            groups.setdefault(repr([trial.levels[name] for name in others]), []).append(row)
        changes = {name: _first_change([[row[name] for row in group] for group in groups.values()]) for name in varying}
        changes = {name: values for name, values in changes.items() if values}
        if changes:
            moving[factor] = changes
    return moving


def _first_change(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The different values of the first group that has several; none where each group has one."""
    distinct = (list({repr(value): value for value in group}.values()) for group in groups)
    return next((values for values in distinct if len(values) > 1), [])


def _number_levels(cells: Cells, factor: str) -> tuple[int, ...]:
    """The cells' levels by number, in the order of their appearance."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(repr(cell[factor]), len(numbers)) for cell in cells)


def _code_levels(numbers: Sequence[int]) -> np.ndarray[Any, Any]:
    """(cells, levels - 1): a column a level but the first."""
    return np.asarray(np.array(numbers)[:, None] == np.arange(1, max(numbers) + 1), dtype=float)


def _rank(columns: Sequence[np.ndarray[Any, Any]]) -> int:
    rows = len(columns[0]) if columns else 1
    return int(np.linalg.matrix_rank(np.hstack([np.ones((rows, 1)), *columns])))


def _quantities(trial: PlannedTrial, factors: Mapping[str, Any]) -> dict[str, Any]:
    """What may move along with a factor. `chunks` and the scaled learning rate only follow from the others."""
    hidden = {*factors, "chunks", "start_source"}
    fields = {name: value for name, value in trial.config.model_dump().items() if name not in hidden}
    return {**fields, "gradient_batch": trial.gradient_batch, "scaled learning rate": trial.config.base_learning_rate,
            "steps": trial.steps}  # fmt: skip


def _say_moving(study: StudyConfig, factor: str, moved: Mapping[str, list[Any]]) -> str:
    if "learning_rate" in moved:
        moved = {name: values for name, values in moved.items() if name != "scaled learning rate"}
    names = [f"{name} ({_say_values(values)})" if len(moved) <= NAMED // 2 else name for name, values in moved.items()]
    said = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    if factor not in TrialConfig.model_fields:
        return f"{factor} stands for several fields at once ({said}): its effect is that of all of them"
    line = f"{factor} also changes {said}"
    sizes = study.values("batch_size")
    held = max(moved.get("gradient_batch", [0]))
    if factor == "batch_size" and held and all(held % size == 0 for size in sizes):
        line += f"; --set fixed_gradient_batch={held} holds them"
    return line


def _say_values(values: Sequence[Any]) -> str:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numbers and len(values) > 2:
        return f"{_say_value(min(values))} to {_say_value(max(values))}"
    return ", ".join(map(_say_value, values))


def _say_value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_balance(cells: Cells) -> list[str]:
    """Of a full cross that it is one; else what is not crossed, and how often each level is planned."""
    uncrossed = find_uncrossed(cells)
    if not uncrossed:
        return [f"balance: all {len(cells)} crossings of the factors are planned, each level equally often"]
    pairs = ", ".join(f"{a} x {b}" for a, b in uncrossed[:NAMED])
    more = f" and {len(uncrossed) - NAMED} more" if len(uncrossed) > NAMED else ""
    counts = {factor: Counter(str(cell[factor]) for cell in cells) for factor in cells[0]}
    uneven = [f"{factor} {_say_counts(levels)}" for factor, levels in counts.items() if len(set(levels.values())) > 1]
    return [
        f"not crossed with each other, so no interaction is seen: {pairs}{more}",
        *[f"balance, cells a level: {'; '.join(uneven)}"] * bool(uneven),
    ]


def _say_counts(levels: Counter[str]) -> str:
    """`sn 12, others 2`: what most levels have last."""
    usual = Counter(levels.values()).most_common(1)[0][0]
    special = ", ".join(f"{level} {count}" for level, count in levels.items() if count != usual)
    return f"{special}, others {usual}"


# -------------------------------------------------------------------------------------------------- replicates


def power_of(replicates: int, effect: float, confidence: float) -> float:
    """Chance that a two-sided paired t test over so many replicates sees a difference of `effect` spreads.

    The spread is the standard deviation of a pair's difference over replicates (Cohen's d of paired samples).
    """
    from scipy.stats import nct, t

    edge, shift = t.ppf((1 + confidence) / 2, replicates - 1), effect * np.sqrt(replicates)
    # The lower tail by symmetry: asked for directly, there is no number for it where it is next to nothing.
    return float(nct.sf(edge, replicates - 1, shift) + nct.sf(edge, replicates - 1, -shift))


def replicates_for(effect: float, confidence: float, power: float = POWER) -> int | None:
    """The fewest replicates that see a difference of `effect` spreads with that power; None above 1000."""
    sizes = range(2, MOST + 1)
    found = bisect_left(sizes, power, key=lambda replicates: power_of(replicates, effect, confidence))
    return sizes[found] if found < len(sizes) else None


def visible_effect(replicates: int, confidence: float, power: float = POWER) -> float:
    """The smallest difference, in spreads, that so many replicates (at least 2) see with that power."""
    from scipy.optimize import brentq

    return float(brentq(lambda effect: power_of(replicates, effect, confidence) - power, 1e-3, 100.0))


def _warn_of_replicates(replicates: int) -> str:
    lacking = "no interval" if replicates == 1 else "wide intervals of differences and none of ratios"
    number = f"{replicates} replicate{'s' * (replicates > 1)}"
    return f"{number}: {lacking}, so hardly a verdict; at least {LEAST}, better {BETTER}: --set replicates={BETTER}"


def _describe_power(study: StudyConfig, folder: StudyFolder) -> list[str]:
    confidence, questions = study.analysis.confidence, study.analysis.questions
    lines = []
    if "useful" in questions and len(study.values("norm")) > 1:
        seen = f"replicates: a paired difference of one spread takes {replicates_for(1, confidence)} (power {POWER:g})"
        if study.replicates > 1:
            seen += f"; the {study.replicates} planned see {visible_effect(study.replicates, confidence):.2g} spreads"
        lines += [seen, *_needed_for_margin(study, folder)]
    if {"impacts", "tasks"} & set(questions):
        lines.append(_needed_for_ratio(study, folder))
    return lines


def _needed_for_margin(study: StudyConfig, folder: StudyFolder) -> list[str]:
    """Replicates that the margin of question 1 takes, at the largest spread that the last report has seen."""
    spreads = {
        effect["comparison"]: float(np.std(effect["per_replicate"], ddof=1))
        for effect in _reported(folder, "useful", study.metric) if len(effect.get("per_replicate") or ()) > 1
    }  # fmt: skip
    comparison = max(spreads, key=lambda name: spreads[name], default="")
    if not spreads or not spreads[comparison]:
        return []
    from study.config.schema import SCORE_MARGIN

    needed = replicates_for(SCORE_MARGIN / spreads[comparison], study.analysis.confidence)
    return [f"the spread of {study.metric} in the last report is {spreads[comparison]:.3g} ({comparison}): "
            f"to see {SCORE_MARGIN:g} takes {needed or f'more than {MOST}'} replicates"]  # fmt: skip


def _needed_for_ratio(study: StudyConfig, folder: StudyFolder) -> str:
    """The same of ratios of distances, on a logarithmic scale."""
    from scipy.stats import t

    confidence, spreads = study.analysis.confidence, {}
    for effect in [*_reported(folder, "impacts", "effect"), *_reported(folder, "tasks", "effect")]:
        low, high = effect.get("interval") or (0.0, 0.0)
        if low > 0 and high > low and effect["n"] > 1:
            reach = np.log(high / low) / 2
            spreads[effect["comparison"]] = float(
                reach * np.sqrt(effect["n"]) / t.ppf((1 + confidence) / 2, effect["n"] - 1)
            )
    if not spreads:
        return f"replicates for ratios of distances: at least {LEAST}, better {BETTER}; no spread is known here yet"
    factor = max(spreads, key=lambda name: spreads[name])
    needed = replicates_for(np.log(SOUGHT_RATIO) / spreads[factor], confidence)
    return (
        f"replicates to see {SOUGHT_RATIO:g} times what seeds move, at the spread of {factor} in the last report: "
        f"{max(needed, LEAST) if needed else f'more than {MOST}'}"
    )


def _reported(folder: StudyFolder, question: str, measure: str) -> list[dict[str, Any]]:
    """The effects of one measure in the last report; none where there is no report, or it is not as expected."""
    try:
        effects = (read_json(Path(folder.report) / "answers.json") or {})["questions"][question]["effects"]
        return [effect for effect in effects if effect["measure"] == measure]
    except (KeyError, TypeError):
        return []
