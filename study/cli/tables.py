"""What `plan`, `status` and `diff` print."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from study.cli.live_view import STATES, TrialProblem, format_duration, format_problems, group_problems
from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.config.yaml_input import read_yaml
from study.plan.design_diagnostics import describe_balance, find_problems
from study.plan.disk_space import check_disk_space, format_bytes
from study.plan.power_analysis import describe_power
from study.plan.trials import PlannedTrial, plan_trials
from study.record.io import read_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.executors.slurm import QueuedJob, read_queue

AT_WORK = ("running", "queued")
LINES = 20  # of trials, or of causes, in one state; a cluster has thousands


def print_plan(
    console: Console, study: StudyConfig, trials: Sequence[PlannedTrial], folder: StudyFolder, workers: int
) -> None:
    """The plan, a row a cell. What needs no network is there at once; sizes and times follow as they are measured."""
    cells = _by_cell(trials)
    console.print(f"{study.title}\n{study.question}")
    datasets, epochs = ("/".join(map(str, study.list_values(field))) for field in ("dataset", "epochs"))
    console.print(
        f"{len(trials)} trials: {len(cells)} cells x {study.replicates} replicates, {study.scale} scale, "
        f"data {datasets}, {epochs} epochs. G: chunks, B: batch_size; batch statistics are over "
        "`stat` samples, gradients over G*B.\n"
    )
    sizes: dict[str, Any] = {}
    # On a terminal the table fills before the user's eyes; in a pipe only the finished one is printed.
    with Live(_plan_table(study, cells, sizes), console=console, auto_refresh=False, transient=True) as live:
        from study.training.cost_estimate import (  # imports torch: after the first look at the table
            estimate_bytes,
            measure_cell,
        )

        for cell, planned in cells.items():
            sizes[cell] = measure_cell(planned[0])
            if console.is_terminal:
                live.update(_plan_table(study, cells, sizes), refresh=True)
    console.print(_plan_table(study, cells, sizes))
    missing = [trial for trial in trials if not folder.trial(trial.trial_id, trial.replicate).result.exists()]
    needed = sum(
        estimate_bytes(trial, sizes[trial.trial_id], checkpoint_seconds=study.run.checkpoint_seconds,
                       wandb=study.tracking.mode != "disabled")
        for trial in missing
    )  # fmt: skip
    free, full = check_disk_space(needed, folder)
    console.print()
    for problem in [*[full] * bool(full), *find_problems(study, trials)]:
        console.print(f"- {problem}", soft_wrap=True)
    for line in [*describe_balance(trials), *describe_power(study, folder)]:
        console.print(line, soft_wrap=True)
    total = sum(sizes[trial.trial_id].seconds for trial in trials)
    console.print(
        f"forecast, from a few steps of every cell on this machine: {format_duration(total)} of computing, "
        f"about {format_duration(total / workers)} with {workers} workers, without the fixed cost of a trial",
        soft_wrap=True,
    )
    if missing:
        to_do = "" if len(missing) == len(trials) else f" for the {len(missing)} trials to do"
        console.print(f"disk: about {format_bytes(needed)}{to_do}; {format_bytes(free)} free")


def _plan_table(study: StudyConfig, cells: dict[str, list[PlannedTrial]], sizes: dict[str, Any]) -> Table:
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
            *(str(level) for level in trial.levels.values()),
            str(trial.config.chunks), str(trial.config.batch_size), str(trial.statistics_batch),
            str(trial.gradient_batch), str(trial.device_batch),
            f"{trial.config.base_learning_rate:.4g}", str(trial.steps), " ".join(trial.pool), *measured,
        )  # fmt: skip
    return table


def print_status(console: Console, study: StudyConfig, folder: StudyFolder) -> None:
    """How far the study is: states counted in every cell, then every trial that failed or was interrupted, and why."""
    states = trial_states(study, folder)
    counts = Counter(state for state, _, _ in states.values())
    total = len(states) if study.search is None else study.search.n_trials * study.replicates
    finished = sum(counts[state] for state in ("done", "diverged", "pruned"))
    console.print(f"{folder.path}: {finished} of {total} trials have a result")
    cells: dict[tuple[str, ...], Counter[str]] = {}
    for state, _, levels in states.values():
        cells.setdefault(tuple(_say(levels.get(factor)) for factor in study.factors), Counter())[state] += 1
    seen = [state for state in STATES if counts[state]]
    rows = [(*cell, *(str(count[state] or "") for state in seen)) for cell, count in cells.items()]
    _print_rows(console, [(*study.factors, *seen), *rows], left=len(study.factors))
    for state in seen:
        told = [TrialProblem(key=key, state=state, reason=reason)
                for key, (other, reason, _) in states.items() if other == state and reason]  # fmt: skip
        groups = [] if state == "pruned" else [[one] for one in told] if state in AT_WORK else group_problems(told)
        for group in groups[:LINES]:
            console.print(format_problems(group), soft_wrap=True)
        if len(groups) > LINES:
            console.print(f"{state}: and {sum(map(len, groups[LINES:]))} more")
    if driver := format_driver(folder):
        console.print(driver)


def format_driver(folder: StudyFolder) -> str:
    """Which driver is at work; empty where none is."""
    if not folder.is_locked():
        return ""
    driver = read_json(folder.driver) or {}
    how = "a detached driver" if driver.get("detached") else "a driver"
    return f"{how} is at work: process {driver.get('pid')} on {driver.get('host')}"


def _print_rows(console: Console, rows: Sequence[Sequence[str]], left: int) -> None:
    """A head and its rows, the first columns flush left. A table of rich takes a millisecond a row, at thousands."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = (
        "  ".join(text.ljust(width) if number < left else text.rjust(width)
                  for number, (text, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip
    console.out(head, style="bold", highlight=False)
    if lines:
        console.out("\n".join(lines), highlight=False)


def trial_states(study: StudyConfig, folder: StudyFolder) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """State, reason and levels of every trial: the planned ones of a grid, the suggested ones of a search.

    Of a trial that runs or is queued the reason says where.
    """
    queue = read_queue(folder)
    if study.search is None:
        records = {
            trial.key: (folder.trial(trial.trial_id, trial.replicate), trial.levels) for trial in plan_trials(study)
        }
    else:
        records = {record.key: (record, _levels(record)) for record in folder.trials()}
    return {key: (*trial_state(record, queue), levels) for key, (record, levels) in records.items()}


def trial_state(record: TrialFolder, queue: Mapping[str, tuple[str, QueuedJob]]) -> tuple[str, str]:
    """State and reason of a trial, with what Slurm's queue says of it."""
    state, reason = record.status()
    if state == "running":
        return state, _where(record)
    if state in ("planned", "stale") and record.key in queue:
        job, queued = queue[record.key]
        why = "" if queued.reason == "None" else f" ({queued.reason})"
        return "queued", f"Slurm job {job}: {queued.state}{why}" + (f"; {reason}" if reason else "")
    return state, reason


def _where(record: TrialFolder) -> str:
    """Where a running trial runs, and for how long."""
    state = read_json(record.state) or {}
    place = state.get("job") or f"process {state.get('pid')}"
    since = format_duration(time.time() - float(state.get("started", time.time())))
    return f"{place} on {state.get('host')}, attempt {state.get('attempt')}, for {since}"


def _levels(record: TrialFolder) -> dict[str, Any]:
    """The levels that a search gave a trial; empty before it has said so, and where what it said is damaged."""
    try:
        return dict(read_yaml(record.trial)["levels"])
    except (OSError, UserError, KeyError, TypeError):
        return {}


def _say(level: object) -> str:
    return "" if level is None else f"{level:.4g}" if isinstance(level, float) else str(level)


def print_difference(console: Console, first: TrialFolder, second: TrialFolder) -> None:
    """What differs between two trials, in config, environment and result."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", first.key, second.key):
        table.add_column(name, overflow="fold")
    here, there = _everything(first), _everything(second)
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            table.add_row(key, str(here.get(key, "-")), str(there.get(key, "-")))
    console.print(table if table.row_count else "no difference")


def _everything(record: TrialFolder) -> dict[str, Any]:
    """All facts of a trial by dotted key, without those that differ between any two."""
    described = read_yaml(record.trial) if record.trial.exists() else {}
    facts: dict[str, Any] = {"status": record.status()[0], "replicate": record.replicate}
    for prefix, values in (
        ("config", described.get("config", {})),
        ("seeds", described.get("seeds", {})),
        ("environment", read_json(record.environment) or {}),
        ("result", read_json(record.result) or {}),
    ):
        facts |= {f"{prefix}.{key}": value for key, value in _flatten(values)}
    repeated = ("result.files", "result.schema", "result.trial_id", "result.replicate", "result.status",
                "environment.wandb")  # fmt: skip
    return {key: value for key, value in facts.items() if not key.startswith(repeated)}


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _by_cell(trials: Sequence[PlannedTrial]) -> dict[str, list[PlannedTrial]]:
    cells: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        cells.setdefault(trial.trial_id, []).append(trial)
    return cells
