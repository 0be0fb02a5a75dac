"""Design diagnostics: which effects a plan cannot separate, what else changes with a factor, and balance.

They need the levels and configs of the planned trials only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from study.config.schema import StudyConfig, TrialConfig
from study.config.wording import format_plural
from study.plan.power_analysis import MIN_REPLICATES, RECOMMENDED_REPLICATES
from study.plan.trials import PlannedTrial

MAX_NAMES = 6
"""At most this many names are listed in a line."""
MAX_COLUMNS = 1000
"""Columns of a design matrix; the rank of a larger one would take minutes."""

Cells = Sequence[Mapping[str, Any]]


def find_problems(study: StudyConfig, trials: Sequence[PlannedTrial]) -> list[str]:
    """Returns what keeps the plan from answering its question, or changes what an answer means; one line each."""
    planned = list({trial.trial_id: trial for trial in trials}.values())
    cells = [trial.levels for trial in planned]
    constant = [factor for factor in study.factors if len({repr(cell[factor]) for cell in cells}) == 1]
    aliases = find_aliases(cells)
    aliased = {factor for names in aliases for factor in names}
    lines = [_format_few_replicates(study.replicates)] if study.replicates < MIN_REPLICATES else []
    lines += [f"{' and '.join(names)} always change together: their effects cannot be told apart" for names in aliases]
    lines += [
        f"{factor}: its effect cannot be told apart from the effects of the other factors together"
        for factor in find_confounded(cells) if factor not in aliased
    ]  # fmt: skip
    if not is_rank_checked(cells):
        lines.append(f"more than {MAX_COLUMNS} levels: whether effects can be told apart is not checked")
    if constant:
        lines.append(f"only one level, so the effect cannot be estimated: {', '.join(constant)}")
    warming = [trial for trial in planned if trial.config.epochs and trial.config.warmup_epochs >= trial.config.epochs]
    if warming:
        count = format_plural(len(warming), "cell")
        lines.append(f"the warm-up takes the whole training in {count}: warmup_epochs is not below epochs")
    for factor, changes in find_co_varying(study, planned).items():
        lines.append(_format_co_varying(study, factor, changes))
    return lines


def describe_balance(trials: Sequence[PlannedTrial]) -> list[str]:
    """Returns lines that say whether all factors are crossed, and if not, how often each level is planned."""
    cells = [trial.levels for trial in {trial.trial_id: trial for trial in trials}.values()]
    uncrossed = find_uncrossed(cells)
    if not uncrossed:
        return [f"balance: all {len(cells)} combinations of levels are planned, each level equally often"]
    pairs = _join_names([f"{a} x {b}" for a, b in uncrossed])
    lines = [f"not crossed with each other, so their interaction cannot be estimated: {pairs}"]
    counts = {factor: Counter(str(cell[factor]) for cell in cells) for factor in cells[0]}
    uneven = {factor: levels for factor, levels in counts.items() if len(set(levels.values())) > 1}
    if uneven:
        listed = "; ".join(f"{factor} {_format_counts(levels)}" for factor, levels in uneven.items())
        lines.append(f"balance, cells per level: {listed}")
    return lines


# ------------------------------------------------------------------------------------------------ the design


def find_aliases(cells: Cells) -> list[tuple[str, ...]]:
    """Returns groups of factors that split the cells in the same way: if one changes its level, so do the others."""
    splits: dict[tuple[int, ...], list[str]] = {}
    for factor in cells[0]:
        numbers = _number_levels(cells, factor)
        if max(numbers):
            splits.setdefault(numbers, []).append(factor)
    return [tuple(names) for names in splits.values() if len(names) > 1]


def find_confounded(cells: Cells) -> list[str]:
    """Returns factors whose main effect the design matrix (cells, levels) cannot separate from the others."""
    if not is_rank_checked(cells) or len(cells) == math.prod(_count_levels(cells)):  # of a full cross, none
        return []
    columns = {factor: _code_levels(_number_levels(cells, factor)) for factor in cells[0]}
    owners = np.array(["", *(factor for factor, own in columns.items() for _ in range(own.shape[1]))])
    design = np.hstack([np.ones((len(cells), 1)), *columns.values()])
    gram = design.T @ design  # has the rank of the design, and no row per cell
    rank = _compute_rank(gram)
    return [
        factor for factor, own in columns.items()
        if rank - _compute_rank(gram[np.ix_(owners != factor, owners != factor)]) < own.shape[1]
    ]  # fmt: skip


def is_rank_checked(cells: Cells) -> bool:
    """Whether the design matrix is small enough for `find_confounded`, or has no need of it."""
    levels = _count_levels(cells)
    return sum(levels) <= MAX_COLUMNS or len(cells) == math.prod(levels)


def find_uncrossed(cells: Cells) -> list[tuple[str, str]]:
    """Returns pairs of factors that are not fully crossed, so that their interaction cannot be estimated."""
    levels = {factor: {repr(cell[factor]) for cell in cells} for factor in cells[0]}
    return [
        (a, b) for a, b in combinations(levels, 2)
        if len({(repr(cell[a]), repr(cell[b])) for cell in cells}) < len(levels[a]) * len(levels[b])
    ]  # fmt: skip


def find_co_varying(study: StudyConfig, trials: Sequence[PlannedTrial]) -> dict[str, dict[str, list[Any]]]:
    """Returns for each factor what else changes with it while all other factors are constant, and its values.

    These are fields of a trial, and the gradient batch, learning rate and steps that are computed from them. Fields
    change because `joint` or `start.base` adds them to a level; G * B changes with B if the chunks are constant.
    """
    rows = [_list_quantities(trial, study.factors) for trial in trials]
    varying = [name for name in rows[0] if len({repr(row[name]) for row in rows}) > 1]
    co_varying: dict[str, dict[str, list[Any]]] = {}
    for factor in study.factors:
        others = [name for name in study.factors if name != factor]
        groups: dict[str, list[dict[str, Any]]] = {}
        for trial, row in zip(trials, rows, strict=True):
            groups.setdefault(repr([trial.levels[name] for name in others]), []).append(row)
        changes = {name: _find_change([[row[name] for row in group] for group in groups.values()]) for name in varying}
        changes = {name: values for name, values in changes.items() if values}
        if changes:
            co_varying[factor] = changes
    return co_varying


def _list_quantities(trial: PlannedTrial, factors: Mapping[str, Any]) -> dict[str, Any]:
    """What may change along with a factor. `chunks` is left out: it follows from the gradient batch and B."""
    left_out = {*factors, "chunks", "start_source"}
    fields = {name: value for name, value in trial.config.model_dump().items() if name not in left_out}
    return {**fields, "gradient_batch": trial.gradient_batch, "scaled learning rate": trial.config.base_learning_rate,
            "steps": trial.steps}  # fmt: skip


def _find_change(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The distinct values of the first group that has several; empty if every group has one."""
    distinct = (list({repr(value): value for value in group}.values()) for group in groups)
    return next((values for values in distinct if len(values) > 1), [])


def _number_levels(cells: Cells, factor: str) -> tuple[int, ...]:
    """The number of each cell's level, in the order in which levels appear."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(repr(cell[factor]), len(numbers)) for cell in cells)


def _count_levels(cells: Cells) -> list[int]:
    return [max(_number_levels(cells, factor)) + 1 for factor in cells[0]]


def _code_levels(numbers: Sequence[int]) -> np.ndarray[Any, Any]:
    """Dummy coding, (cells, levels - 1): a column for each level but the first."""
    return np.asarray(np.array(numbers)[:, None] == np.arange(1, max(numbers) + 1), dtype=float)


def _compute_rank(gram: np.ndarray[Any, Any]) -> int:
    return int(np.linalg.matrix_rank(gram, hermitian=True))


# ------------------------------------------------------------------------------------------------- the lines


def _format_few_replicates(replicates: int) -> str:
    problem = "no intervals" if replicates == 1 else "wide intervals of differences and no intervals of displacements"
    return (
        f"{format_plural(replicates, 'replicate')}: {problem}, so a verdict is unlikely; at least "
        f"{MIN_REPLICATES}, better {RECOMMENDED_REPLICATES}: --set replicates={RECOMMENDED_REPLICATES}"
    )


def _format_co_varying(study: StudyConfig, factor: str, changes: Mapping[str, list[Any]]) -> str:
    if "learning_rate" in changes:
        changes = {name: values for name, values in changes.items() if name != "scaled learning rate"}
    with_values = len(changes) <= MAX_NAMES // 2
    names = _join_names([f"{name} ({_format_values(values)})" if with_values else name
                         for name, values in changes.items()])  # fmt: skip
    if factor not in TrialConfig.model_fields:
        return f"{factor} stands for several fields at once ({names}): its effect is that of all of them"
    line = f"{factor} also changes {names}"
    largest = max(changes.get("gradient_batch", [0]))
    if factor == "batch_size" and largest and all(largest % size == 0 for size in study.list_values("batch_size")):
        line += f"; --set fixed_gradient_batch={largest} keeps them constant"
    return line


def _join_names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _format_counts(levels: Counter[str]) -> str:
    """`sn 12, others 2`, with the most common count last."""
    usual = Counter(levels.values()).most_common(1)[0][0]
    special = ", ".join(f"{level} {count}" for level, count in levels.items() if count != usual)
    return f"{special}, others {usual}"


def _format_values(values: Sequence[Any]) -> str:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numbers and len(values) > 2:
        return f"{_format_value(min(values))} to {_format_value(max(values))}"
    return ", ".join(map(_format_value, values))


def _format_value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
