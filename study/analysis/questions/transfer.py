"""Question 3, before and after transfer: do backbones keep what they chose for their first task?

Finished trials of the switch norm that were fine-tuned are compared with the trials that they started from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import collect_choices
from study.analysis.questions.factor_effects import ChoiceDistances, measure_distances
from study.analysis.questions.factor_rows import factor_row
from study.analysis.records import StudyRecords
from study.analysis.statistics.displacement import displacement

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
    """How far fine-tuning moved what backbones chose, one row per move; `tuned` is from `select_fine_tuned`."""
    return [_compare_move(records, str(move), group) for move, group in tuned.groupby("move", sort=False)]


def _compare_move(records: StudyRecords, move: str, tuned: pd.DataFrame) -> Effect:
    """Before and after are two levels of a factor, in the cells of the fine-tuned trials."""
    trials = records.trials
    before = trials.loc[tuned["source"]].assign(tuned_cell=tuned["trial_id"].to_numpy(), moment="before")
    after = tuned.assign(tuned_cell=tuned["trial_id"], moment="after")
    both = pd.concat([before, after[before.columns]])
    replicates = [*tuned["replicate"], *tuned["replicate"]]
    both = both.assign(trial_id=both["moment"] + both["tuned_cell"], replicate=replicates)
    choices = collect_choices(records.profiles, both, ["tuned_cell", "moment"], records.space)
    moments = measure_distances(choices, records.margin("effect")).moments["moment"]
    estimate = displacement(moments, records.confidence)
    complete = both["state"].eq("done") & both["key"].isin(list(records.profiles))
    pairs = complete.to_numpy().reshape(2, -1).all(axis=0)
    states = trials["state"].loc[tuned["source"]].to_numpy() + " before, " + tuned["state"].to_numpy() + " after"
    return Effect(
        measure=records.measures["transfer_distance"], comparison=move, n_pairs=int(pairs.sum()),
        n_pairs_planned=len(tuned), estimate=estimate, missing=dict(sorted(Counter(states[~pairs]).items())),
        trials=sorted({int(row) for row in both.index[complete]}),
    )  # fmt: skip


def compare_after(tuned: ChoiceDistances, factors: Sequence[str], confidence: float) -> list[Effect]:
    """The displacements of task and data set between networks that were fine-tuned."""
    return [
        factor_row(tuned.choices, "effect_after", name, [name], displacement(tuned.moments[name], confidence))
        for name in factors
        if name in tuned.moments
    ]
