"""Question 3, before and after transfer: do backbones keep what they chose for their first task?

Finished trials of the switch norm that were fine-tuned are compared with the trials that they started from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.questions.factor_effects import ChoiceDistances, adjust_ratio_p_values, factor_row
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Estimate, cell_numbers, complete_block
from study.analysis.statistics.profiles import effect_contrast, factor_effect, transfer_distance

RULE = "fine_tune"  # the start rule under which choices are trained further


def select_fine_tuned(records: StudyRecords, settings: pd.Series) -> pd.DataFrame:
    """The planned trials of the reference norm that are fine-tuned from a trial of the study at another setting.

    settings: the setting of every row of the trial table ("detection on scenes"). Two columns are added: `source`, the
    row of the start trial, and `move`: "classification on scenes -> detection on scenes". Empty for a study that
    fine-tunes within one setting only.
    """
    trials = records.trials
    row_of = pd.Series(trials.index, index=trials["key"])
    of_norm = trials["norm"].eq(records.reference_norm or "")
    by_rule = trials["start_rule"].eq(RULE) if "start_rule" in records.study.factors else of_norm & False
    tuned = trials[of_norm & by_rule & trials["start"].isin(row_of.index)]
    source = tuned["start"].map(row_of).astype(int)
    came, went = settings.loc[source].to_numpy(), settings.loc[tuned.index].to_numpy()
    members = tuned["pool"].str.len()  # as in `select_choices`
    found = tuned.assign(source=source, move=came + " -> " + went)[members.eq(members.max())]
    chosen: pd.DataFrame = found if (came != went).any() else found[:0]
    return chosen


def compare_before_and_after(records: StudyRecords, tuned: pd.DataFrame) -> list[Effect]:
    """How far fine-tuning moved what backbones choose, one row per move; `tuned` is from `select_fine_tuned`."""
    return [_compare_move(records, str(move), group) for move, group in tuned.groupby("move", sort=False)]


def _compare_move(records: StudyRecords, move: str, tuned: pd.DataFrame) -> Effect:
    trials, profiles = records.trials, records.profiles
    has_result = trials["state"].eq("done") & trials["key"].isin(list(profiles))
    complete = has_result[tuned.index] & has_result[tuned["source"]].to_numpy()
    cell = cell_numbers(tuned, ["trial_id"])
    grid = tuned.assign(cell=cell, row=tuned.index).pivot(index="cell", columns="replicate", values="row")
    present = tuned.assign(cell=cell, complete=complete).pivot(index="cell", columns="replicate", values="complete")
    block = np.ix_(*complete_block(present.eq(True).to_numpy()))
    after = grid.to_numpy()[block].astype(np.intp)
    before = tuned["source"].loc[after.ravel()].to_numpy().reshape(after.shape)
    states = trials["state"].loc[tuned["source"]].to_numpy() + " before, " + tuned["state"][tuned.index] + " after"
    of_rows = {row: profiles[trials["key"].loc[row]] for row in {*before.ravel().tolist(), *after.ravel().tolist()}}
    first, second = (np.array([[of_rows[row] for row in line] for line in part]) for part in (before, after))
    confidence = records.study.analysis.confidence
    return Effect(
        measure=records.measures["transfer_distance"], comparison=move, n_pairs=after.size, n_pairs_planned=len(tuned),
        estimate=transfer_distance(first, second, confidence) if after.size else Estimate(),
        missing=dict(sorted(Counter(states[~complete]).items())), trials=sorted(of_rows),
    )  # fmt: skip


def compare_after(
    scratch: ChoiceDistances, tuned: ChoiceDistances, factors: Sequence[str], confidence: float
) -> list[Effect]:
    """The effects of task and data set between networks that were fine-tuned, and over those between scratch ones."""
    effects = {name: factor_effect(tuned.factors[name], confidence) for name in factors if name in tuned.factors}
    p_values = adjust_ratio_p_values(effects, 1, confidence)
    rows = [factor_row(tuned, "effect_after", name, [name], item, p_values[name]) for name, item in effects.items()]
    for name in effects:
        if name in scratch.factors and scratch.replicates == tuned.replicates:
            ratio = effect_contrast(tuned.factors[name], scratch.factors[name], confidence)
            row = factor_row(tuned, "effect_ratio", f"{name} after {RULE} / {name} from scratch", [name], ratio)
            others = factor_row(scratch, "effect", name, [name], ratio).trials
            rows.append(replace(row, trials=sorted({*row.trials, *others})))
    return rows
