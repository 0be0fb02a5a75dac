"""One trial in the terminal: its state, config, learning curves, what its layers chose, and the end of its log."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console

from study.analysis.trial_files import CURVES
from study.analysis.weight_tables import read_switch_weights
from study.cli.recorded import read_checked_state
from study.cli.tables import print_rows
from study.config.choice_space import ChoiceSpace
from study.config.errors import escape_controls, shorten
from study.config.schema import TrialConfig
from study.plan.loading import StudyFile
from study.record.contents import MAX_TABLE_BYTES, read_metrics
from study.record.io import read_file
from study.record.layout import TrialFolder

MAX_EPOCHS = 12  # rows of a table by epoch: the first, the last, and some between
LOG_LINES = 12
MAX_LINE = 2000  # characters of the log


def print_trial(console: Console, trial: TrialFolder, recorded: StudyFile) -> None:
    """Prints a trial of any state, as far as it can be read. recorded: `study.yaml`."""
    state, reason = read_checked_state(trial, recorded)
    console.print(
        escape_controls(f"{trial.key}: {state}" + (f": {reason}" if reason else "")), style="bold", soft_wrap=True
    )
    console.print(str(trial.path), soft_wrap=True)
    try:
        _print_config(console, trial, recorded.study.base)
        _print_curves(console, trial)
        _print_choices(console, trial, recorded.space)
    except ValueError as error:  # a damaged file; the log may say more
        console.print(escape_controls(str(error)), soft_wrap=True)
    if trial.log.is_file() and (lines := trial.log.read_text(encoding="utf-8", errors="replace").splitlines()):
        console.print(f"\nend of {trial.log.name}", style="bold")
        last = (escape_controls(shorten(line, MAX_LINE)) for line in lines[-LOG_LINES:])
        console.print("\n".join(last), soft_wrap=True)


def _print_config(console: Console, trial: TrialFolder, base: TrialConfig) -> None:
    """Prints where the config differs from the study's base, and the command that trains the trial again."""
    description, before = trial.read_description(), base.model_dump(mode="json")
    console.print("\nconfig, where it differs from the base of the study", style="bold")
    for name, value in description["config"].items():
        if value != before.get(name):
            console.print(escape_controls(f"  {name}: {value}"), soft_wrap=True)
    console.print()
    console.print(escape_controls(str(description.get("command"))), soft_wrap=True)


def _print_curves(console: Console, trial: TrialFolder) -> None:
    rows = pd.DataFrame(read_metrics(trial.metrics), columns=["epoch", "name", "value"])
    curves = rows[rows["name"].isin(CURVES)].pivot_table("value", "epoch", "name")
    _print_table(console, "learning curves", curves[[name for name in CURVES if name in curves]])


def _print_choices(console: Console, trial: TrialFolder, space: ChoiceSpace) -> None:
    """Prints the mean weights over all layers by epoch, and those of every layer in the last epoch."""
    if not trial.switch_weights.is_file():
        return
    weights = read_switch_weights(pa.BufferReader(read_file(trial.switch_weights, MAX_TABLE_BYTES)), space).to_pandas()
    weights["choice"] = weights["statistic"].astype(str) + " " + weights["normalizer"].astype(str)
    last = weights[weights["epoch"].eq(weights["epoch"].max())]
    columns = list(dict.fromkeys(weights["choice"]))
    means = weights.pivot_table("weight", "epoch", "choice").reindex(columns=columns)
    _print_table(console, "mean weights of the layers", means)
    layers = last.pivot_table("weight", "layer", "choice", sort=False, observed=True).reindex(columns=columns)
    _print_table(console, "weights of each layer in the last epoch", layers, most=len(layers))


def _print_table(console: Console, title: str, table: pd.DataFrame, most: int = MAX_EPOCHS) -> None:
    """Prints at most `most` rows, evenly spaced from the first to the last."""
    if table.empty:
        return
    shown = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).round().astype(int))]
    console.print(f"\n{title}", style="bold")
    rows = [[str(name), *("" if pd.isna(value) else f"{value:.4g}" for value in row)]
            for name, row in zip(shown.index, shown.to_numpy(), strict=True)]  # fmt: skip
    print_rows(console, [[str(table.index.name), *map(str, table.columns)], *rows], left=1)
