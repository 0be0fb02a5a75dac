"""One trial in the terminal: its state, config, learning curves, what its layers chose, and the end of its log."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from rich.console import Console

from study.analysis.trial_files import CURVES
from study.analysis.weight_tables import read_switch_weights
from study.cli.tables import print_rows
from study.config.choice_space import ChoiceSpace
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.yaml_input import read_yaml
from study.plan.loading import StudyFile
from study.record.io import read_metrics
from study.record.layout import TrialFolder

MAX_EPOCHS = 12  # rows of a table by epoch: the first, the last, and some between
LOG_LINES = 12


def print_trial(console: Console, trial: TrialFolder, recorded: StudyFile) -> None:
    """Prints a trial of any state, as far as it can be read. recorded: `study.yaml`."""
    state, reason = trial.status()
    console.print(_escape(f"{trial.key}: {state}" + (f": {reason}" if reason else "")), style="bold", soft_wrap=True)
    console.print(str(trial.path), soft_wrap=True)
    try:
        _print_config(console, trial, recorded.study.base)
        _print_curves(console, trial)
        _print_choices(console, trial, recorded.space)
    except ValueError as error:  # a damaged file; the log may say more
        console.print(_escape(str(error)), soft_wrap=True)
    if trial.log.is_file() and (lines := trial.log.read_text(encoding="utf-8", errors="replace").splitlines()):
        console.print(f"\nend of {trial.log.name}", style="bold")
        console.print("\n".join(map(_escape, lines[-LOG_LINES:])), soft_wrap=True)


def _print_config(console: Console, trial: TrialFolder, base: TrialConfig) -> None:
    """Prints where the config differs from the study's base, and the command that trains the trial again."""
    description = read_yaml(trial.trial)
    config, before = description.get("config"), base.model_dump(mode="json")
    if not isinstance(config, dict):
        raise UserError(f"{trial.trial}: config: expected keys and values; the file is damaged")
    console.print("\nconfig, where it differs from the base of the study", style="bold")
    for name, value in config.items():
        if value != before.get(name):
            console.print(_escape(f"  {name}: {value}"), soft_wrap=True)
    console.print()
    console.print(_escape(str(description.get("command"))), soft_wrap=True)


def _print_curves(console: Console, trial: TrialFolder) -> None:
    rows = pd.DataFrame(read_metrics(trial.metrics), columns=["epoch", "name", "value"])
    curves = rows[rows["name"].isin(CURVES)].pivot_table("value", "epoch", "name")
    _print_table(console, "learning curves", curves[[name for name in CURVES if name in curves]])


def _print_choices(console: Console, trial: TrialFolder, space: ChoiceSpace) -> None:
    """Prints the mean weights over all layers by epoch, and those of every layer in the last epoch."""
    if not trial.switch_weights.is_file():
        return
    weights = read_switch_weights(trial.switch_weights, space).to_pandas()
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


def _escape(text: str) -> str:
    """A line with its control characters escaped: a log could otherwise write anywhere on the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
