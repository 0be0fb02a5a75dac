"""Tables that `plan`, `status` and `diff` print."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from study.cli.live_view import format_duration, format_problems, group_problems
from study.cli.recorded import read_checked_state
from study.cli.study_observer import STATES, StudyObserver
from study.config.errors import escape_controls, shorten
from study.config.schema import StudyConfig
from study.config.wording import format_count, format_plural
from study.plan.analysis_plan import find_changes, format_changes, hash_plan, resolve_analysis_plan
from study.plan.design_diagnostics import describe_balance, find_problems
from study.plan.disk_space import check_disk_space, format_bytes
from study.plan.fused_groups import plan_groups
from study.plan.loading import StudyFile, read_study_file
from study.plan.power_analysis import describe_power
from study.plan.trials import PlannedTrial
from study.record.contents import FINISHED, DamagedFileError
from study.record.io import flatten
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors.resources import uses_gpus

MAX_CELL = 500  # characters of a value
MAX_CHECKED = 2000  # trials whose files `status` reads, which takes a millisecond or two for each
MAX_MEASURED = 300  # cells of a plan; measuring one takes up to a second
MAX_LINES = 20  # of trials, or of causes, in one state; a cluster may run thousands


def print_plan(
    console: Console, study: StudyConfig, trials: Sequence[PlannedTrial], folder: StudyFolder, workers: int
) -> None:
    """Prints the plan, one row per cell; sizes and times are filled in as the networks are built and measured."""
    cells = _group_by_cell(trials)
    console.print(f"{join_lines(study.title)}\n{join_lines(study.question)}", soft_wrap=True)
    more = len(trials) - len(cells) * study.replicates
    seed_runs = f" and {format_plural(more, 'run')} with {', '.join(study.seeds.apart)} varied apart" if more else ""
    datasets, epochs = ("/".join(map(str, study.list_values(field))) for field in ("dataset", "epochs"))
    console.print(
        f"{format_plural(len(trials), 'trial')}: {_format_size(study, len(cells))}{seed_runs}, {study.scale} scale, "
        f"data {datasets}, epochs: {epochs}. G: chunks, B: batch_size. Batch statistics are taken over `stat` samples, "
        "gradients over G*B.\n"
    )
    measured, part = cells, 1.0
    if len(cells) > MAX_MEASURED:
        names = set(random.Random(0).sample(list(cells), MAX_MEASURED))  # noqa: S311
        measured, part = {name: planned for name, planned in cells.items() if name in names}, MAX_MEASURED / len(cells)
        console.print(f"{MAX_MEASURED} of these cells, chosen at random, are shown and measured:\n")
    sizes: dict[str, Any] = {}
    groups = plan_groups(trials, study, gpu=uses_gpus(study))
    with Live(_build_plan_table(study, measured, sizes), console=console, auto_refresh=False, transient=True) as live:
        # Imports torch, so only after the first table is shown.
        from study.training.cost_estimate import estimate_bytes, measure_cell

        for cell, planned in measured.items():
            sizes[cell] = measure_cell(planned[0], len(groups.get(planned[0].key, planned[:1])))
            if console.is_terminal:
                live.update(_build_plan_table(study, measured, sizes), refresh=True)
    console.print(_build_plan_table(study, measured, sizes))
    finished = {record.key for record in folder.trials() if record.result.exists()}
    missing = [trial for trial in trials if trial.key not in finished]
    needed_bytes = sum(
        estimate_bytes(trial, sizes[trial.trial_id], checkpoint_seconds=study.run.checkpoint_seconds,
                       wandb=study.tracking.mode != "disabled")
        for trial in missing if trial.trial_id in sizes
    ) / part  # fmt: skip
    free, full = check_disk_space(needed_bytes, folder)
    console.print()
    for problem in [*[full] * bool(full), *find_problems(study, trials)]:
        console.print(f"- {problem}", soft_wrap=True)
    for line in [*describe_balance(trials), *describe_power(study, folder)]:
        console.print(line, soft_wrap=True)
    if groups:
        largest = max(map(len, groups.values()))
        console.print(
            f"{format_plural(len(groups), 'trial')} in groups of up to {largest}, each trained as one (run.fuse)"
        )
    total = sum(sizes[trial.trial_id].seconds for trial in trials if trial.trial_id in sizes) / part
    console.print(
        f"forecast from a few steps of {'every' if part == 1 else 'each measured'} cell on this machine: "
        f"{format_duration(total)} of training, about {format_duration(total / workers)} with "
        f"{format_plural(workers, 'worker')}, without the fixed cost of each trial (`bench trial` measures it)",
        soft_wrap=True,
    )
    if missing:
        which = f" for the {format_plural(len(missing), 'trial')} without a result" * (len(missing) < len(trials))
        console.print(f"disk: about {format_bytes(needed_bytes)}{which}; {format_bytes(free)} free")


def _build_plan_table(study: StudyConfig, cells: dict[str, list[PlannedTrial]], sizes: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for factor in study.factors:
        table.add_column(factor)
    for name in ("G", "B", "stat", "G*B", "device", "lr", "steps", "pool", "parameters", "norms", "ms/step", "time"):
        table.add_column(name, justify="left" if name == "pool" else "right")
    for cell, (trial, *_) in cells.items():
        size = sizes.get(cell)
        measured = (
            [f"{size.parameters:,}", str(size.norm_layers), f"{1000 * size.step_seconds:.1f}",
             format_duration(size.seconds)]
            if size else ["..."] * 4
        )  # fmt: skip
        table.add_row(
            *(escape_controls(str(level)) for level in trial.levels.values()),
            str(trial.config.chunks), str(trial.config.batch_size), str(trial.statistics_batch),
            str(trial.gradient_batch), str(trial.device_batch),
            f"{trial.config.base_learning_rate:.4g}", str(trial.steps), " ".join(trial.pool), *measured,
        )  # fmt: skip
    return table


def _format_size(study: StudyConfig, cells: int) -> str:
    return f"{format_plural(cells, 'cell')} x {format_plural(study.replicates, 'replicate')}"


def print_search_space(console: Console, study: StudyConfig) -> None:
    """Prints how many trials a search suggests, and from which levels."""
    assert study.search is not None
    console.print(
        f"{join_lines(study.title)}\n{_format_size(study, study.search.n_trials)}, suggested by "
        f"{study.search.sampler} to {study.search.direction} {study.search.objective}, from"
    )
    for factor, levels in study.factors.items():
        console.print(f"  {factor}: {escape_controls(str(levels))}")


def print_analysis_plan(console: Console, study: StudyConfig, folder: StudyFolder) -> None:
    """Prints the hash of the plan of the analysis, and what differs from the plan on record, if there is one."""
    plan = resolve_analysis_plan(study)
    console.print(f"plan of the analysis: {hash_plan(plan)[:8]}, which the first run records in study.yaml")
    recorded = read_study_file(folder.config).plan if folder.config.exists() else None
    if recorded is None:
        return
    changes = find_changes(recorded.latest, plan)
    what = "the next run records these changes with their date: " + format_changes(changes) if changes else "unchanged"
    amended = f", with {format_plural(len(recorded.amendments), 'amendment')}" if recorded.amendments else ""
    console.print(
        f"on record in {folder.config}: {recorded.hash[:8]} of {recorded.created[:10]}{amended}; {what}", soft_wrap=True
    )


def print_status(console: Console, study: StudyConfig, folder: StudyFolder) -> None:
    """Prints the number of trials in each state per cell, then what runs, failed or was interrupted, and why."""
    observer = StudyObserver(folder, study)
    observer.read_records()
    if len(observer.trials) > MAX_CHECKED:
        console.print(f"more than {MAX_CHECKED} trials: their files are compared with their digests, but not read")
    elif folder.config.exists():
        observer.check_contents(read_study_file(folder.config))
    trials = observer.trials.values()
    counts = Counter(trial.state for trial in trials)
    finished = sum(counts[state] for state in FINISHED)
    console.print(f"{folder.path}: {format_count(finished, observer.total, observer.repeated)}", soft_wrap=True)
    unplanned = sum(trial.key not in observer.plan for trial in folder.trials()) if observer.plan else 0
    if unplanned:
        more = format_plural(unplanned, "more trial on disk is", "more trials on disk are")
        console.print(f"{more} not in the plan, and in no answer")
    cells: dict[tuple[str, ...], Counter[str]] = {}
    for trial in trials:
        planned = observer.plan.get(trial.key)
        levels = planned.levels if planned else _read_levels(observer.record(trial.key))
        cell = tuple(_format_level(levels.get(factor)) for factor in study.factors)
        cells.setdefault(cell, Counter())[trial.state] += 1
    states = [state for state in STATES if counts[state]]
    rows = [(*cell, *(str(count[state] or "") for state in states)) for cell, count in cells.items()]
    print_rows(console, [(*study.factors, *states), *rows], left=len(study.factors))
    for state in states:
        _print_reasons(console, state, observer)
    if observer.driver:
        console.print(escape_controls(observer.driver))


def _print_reasons(console: Console, state: str, observer: StudyObserver) -> None:
    """Prints where each trial runs or is queued; for other states, one line per cause."""
    trials = [trial for trial in observer.trials.values() if trial.state == state]
    if state == "running":
        lines = [f"running: {trial.key}: {_format_place(observer.record(trial.key))}" for trial in trials]
    elif state == "queued":
        lines = [f"queued: {trial.key}: {trial.reason}" for trial in trials]
    else:
        groups = group_problems(trial for trial in trials if trial.reason and state != "pruned")
        lines = [format_problems(group) for group in groups]
    for line in lines[:MAX_LINES]:
        console.print(escape_controls(line), soft_wrap=True)
    if len(lines) > MAX_LINES:
        console.print(f"{state}: and {len(lines) - MAX_LINES} more")


def _format_place(record: TrialFolder) -> str:
    """Where a running trial runs, and for how long."""
    state = record.read_state()
    place = state.get("job") or f"process {state.get('pid')}"
    duration = format_duration(time.time() - float(state.get("started", time.time())))
    return f"{place} on {state.get('host')}, attempt {state.get('attempt')}, for {duration}"


def _read_levels(record: TrialFolder) -> dict[str, Any]:
    """The levels that a search gave a trial; empty if trial.yaml is not written yet, or damaged."""
    try:
        return dict(record.read_description()["levels"])
    except DamagedFileError:
        return {}


def _format_level(level: object) -> str:
    return "" if level is None else f"{level:.4g}" if isinstance(level, float) else _format_cell(level)


def _format_cell(value: object) -> str:
    """A value of a record as one line of limited length."""
    return escape_controls(shorten(str(value), MAX_CELL))


def join_lines(text: str) -> str:
    """A text of a study, which may have line breaks, as one line."""
    return escape_controls(" ".join(text.split()))


def print_rows(console: Console, rows: Sequence[Sequence[str]], left: int) -> None:
    """Prints a header and rows, the first `left` columns left-aligned. A rich table takes a millisecond per row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = (
        "  ".join(text.ljust(width) if number < left else text.rjust(width)
                  for number, (text, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip
    console.out(head, style="bold", highlight=False)
    if lines:
        console.out("\n".join(lines), highlight=False)


def print_difference(console: Console, recorded: StudyFile, first: TrialFolder, second: TrialFolder) -> None:
    """Prints what differs between two trials of a study in config, environment and result, and numbers by how much."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", first.key, second.key, "difference"):
        table.add_column(name, overflow="fold", justify="right" if name == "difference" else "left")
    left, right = (_read_facts(each, recorded) for each in (first, second))
    for key in sorted(left.keys() | right.keys()):
        one, other = left.get(key, "-"), right.get(key, "-")
        if one != other:
            table.add_row(*map(_format_fact, (key, one, other)), _format_difference(key, one, other))
    console.print(table if table.row_count else "no difference")


def _format_difference(key: str, one: Any, other: Any) -> str:
    """The difference of two numbers; empty for all else, such as seeds and true or false."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return f"{other - one:+.4g}" if numbers and key.startswith(("result.", "config.")) else ""


def _format_fact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _format_cell(value)


def _read_facts(record: TrialFolder, recorded: StudyFile) -> dict[str, Any]:
    """The record as dotted keys, without the values that always differ."""
    status, reason = read_checked_state(record, recorded)
    facts: dict[str, Any] = {"status": status, "replicate": record.replicate} | ({"reason": reason} if reason else {})
    try:
        description = record.read_description() if record.trial.exists() else {}
        described = {name: description.get(name, {}) for name in ("config", "seeds")}
        facts |= flatten({**described, "environment": record.read_environment()})
    except DamagedFileError as error:
        facts["damaged"] = str(error)
    facts |= flatten(record.check()[0] or {}, "result.")
    omitted = ("result.files", "result.schema", "result.trial_id", "result.replicate", "result.status",
               "environment.wandb")  # fmt: skip
    return {key: value for key, value in facts.items() if not key.startswith(omitted)}


def _group_by_cell(trials: Sequence[PlannedTrial]) -> dict[str, list[PlannedTrial]]:
    cells: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        cells.setdefault(trial.trial_id, []).append(trial)
    return cells
