"""The report's tables as files: CSV with all data, LaTeX for print."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis.questions.answers import Answer, Effect
from study.analysis.records import StudyRecords
from study.record.io import write_bytes

# The states of trials in the order in which the report lists them.
REPORT_STATES = ("done", "diverged", "pruned", "failed", "repeated", "damaged", "stale", "running", "planned")
_OPTIONAL_COLUMNS = ("bootstrap_low", "bootstrap_high", "share_above", "p_value")
_EFFECT_COLUMNS = (
    *("measure", "rule", "comparison", "estimate", "low", "high", "replicates", "pairs", "pairs_planned", "missing"),
    *(*_OPTIONAL_COLUMNS, "trials"),
)


def write_tables(folder: Path, records: StudyRecords, answers: Mapping[str, Answer]) -> None:
    """Writes `effects_<question>`, `coverage` and `trials`, each as .csv and as .tex (for LaTeX's booktabs)."""
    tables = {f"effects_{name}": build_effects_table(answer.effects) for name, answer in answers.items()}
    tables |= {"coverage": build_coverage_table(records), "trials": build_trials_table(records)}
    # LaTeX gets the columns for which a printed page has room.
    narrow = ["key", *records.study.factors, "state", records.study.metric, "train_loss", "generalization_gap"]
    for name, table in tables.items():
        write_bytes(folder / f"{name}.csv", format_csv(table).encode())
        shown = table[narrow] if name == "trials" else table.drop(columns=["rule", "trials"], errors="ignore")
        write_bytes(folder / f"{name}.tex", format_latex(shown, label=name).encode())


def build_effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """A row an effect; optional columns are left out where no row has a value."""
    rows = [
        {"measure": effect.measure.name, "rule": effect.measure.rule_name, "comparison": effect.comparison,
         "estimate": effect.estimate.value, "low": effect.estimate.low, "high": effect.estimate.high,
         "replicates": effect.estimate.n, "pairs": effect.n_pairs, "pairs_planned": effect.n_pairs_planned,
         "missing": ", ".join(f"{number} {cause}" for cause, number in effect.missing.items()),
         "bootstrap_low": effect.bootstrap and effect.bootstrap[0],
         "bootstrap_high": effect.bootstrap and effect.bootstrap[1],
         "share_above": effect.share_above, "p_value": effect.p_value,
         "trials": " ".join(map(str, effect.trials))}
        for effect in effects
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(_EFFECT_COLUMNS))
    filled: pd.DataFrame = table.drop(columns=[name for name in _OPTIONAL_COLUMNS if table[name].isna().all()])
    return filled


def build_coverage_table(records: StudyRecords) -> pd.DataFrame:
    """One row per cell: its levels, and its number of replicates in each state."""
    factors = list(records.study.factors)
    cells = count_states(records.trials, factors)
    states = [state for state in REPORT_STATES if any(counts[state] for _, counts in cells)]
    rows = [[*levels, *(len(counts[state]) for state in states)] for levels, counts in cells]
    table: pd.DataFrame = pd.DataFrame(rows, columns=[*factors, *states])
    return table


def build_trials_table(records: StudyRecords) -> pd.DataFrame:
    """The trial table with the row numbers by which effects name their trials."""
    table: pd.DataFrame = records.trials.rename_axis("row").reset_index()
    return table


def count_states(trials: pd.DataFrame, factors: Sequence[str]) -> list[tuple[list[str], defaultdict[str, list[int]]]]:
    """The levels of every cell, and the row numbers of its trials by state."""
    cells: dict[tuple[str, ...], defaultdict[str, list[int]]] = {}
    for number, row in enumerate(trials.to_dict("records")):
        levels = tuple(str(row[factor]) for factor in factors)
        cells.setdefault(levels, defaultdict(list))[row["state"]].append(number)
    return [(list(levels), states) for levels, states in cells.items()]


def format_csv(table: pd.DataFrame) -> str:
    """A table as CSV, with no text that a spreadsheet would run as a formula: such text starts with an apostrophe."""
    harmless = table.rename(columns=_quote_formula).map(_quote_formula)
    return str(harmless.to_csv(index=False, lineterminator="\n"))


def _quote_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which would start a line, without quotes
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text
    return text


def format_latex(table: pd.DataFrame, label: str) -> str:
    """A table with booktabs rules that may span pages, with all text escaped."""
    text = table.to_latex(
        index=False, escape=True, na_rep="", longtable=True, float_format="{:.4g}".format, label=f"tab:{label}",
        caption=label.replace("_", " "),
    )  # fmt: skip
    return f"% Needs \\usepackage{{booktabs,longtable}}.\n{text}"
