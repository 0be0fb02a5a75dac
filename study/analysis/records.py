"""The records of a study: what its trials left on disk, as data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from study.analysis.data_fingerprints import mark_other_data
from study.analysis.duplicates import REPEATED, find_duplicates, mark_duplicates
from study.analysis.statistics.intervals import cell_numbers
from study.analysis.statistics.measures import Measure, build_measures
from study.analysis.statistics.profiles import Profiles, build_profiles
from study.analysis.trial_files import TrialRecord, build_key, build_trial_table, read_search_plan, read_trial
from study.analysis.weight_tables import compute_epoch_means, join_weights, select_last_epochs, split_roles
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import UserError, allowed_names
from study.config.schema import AnalysisConfig, StudyConfig
from study.config.seeds import MAX_REPLICATES
from study.norms.names import parse_norm
from study.plan.analysis_plan import (
    DECIDING,
    Amendment,
    Change,
    PlanRecord,
    changes_runs,
    find_changes,
    find_removed,
    resolve_analysis_plan,
)
from study.plan.design_diagnostics import find_co_varying
from study.plan.loading import StudyFile, read_study_file
from study.plan.margins import compute_margin
from study.plan.trials import PlannedTrial, count_search_trials, plan_trials
from study.record.contents import FINISHED
from study.record.layout import StudyFolder, TrialFolder

ENDED = (*FINISHED, "failed", REPEATED)
"""States of trials that nothing is waited for; the others are planned, running, stale, and damaged: trained again."""


@dataclass(frozen=True, kw_only=True)
class PlanChanges:
    """How what a report computes differs from the plan of the analysis.

    recorded: the plan; None where none was recorded. amendments: changes that later runs recorded, in their order.
    unrecorded: changes that no run has recorded, of a study file that was edited or by another version of this program.
    """

    recorded: PlanRecord | None
    amendments: tuple[Amendment, ...] = ()
    unrecorded: Mapping[str, Change] = field(default_factory=dict)

    @property
    def is_as_planned(self) -> bool:
        """Whether the plan was recorded before there were results, and nothing has changed since."""
        before_data = self.recorded is not None and self.recorded.is_before_data
        return before_data and not self.amendments and not self.unrecorded


@dataclass(frozen=True, kw_only=True)
class StudyRecords:
    """The records of a study as tables.

    space: what the layers of its networks choose from.
    trials: one row per planned trial (of a search: per trial on disk). Columns: key, trial_id, replicate, one per
        factor, `CONFIG_COLUMNS`, state, reason, `METRICS` (NaN where null), `RESULT_NUMBERS`
        and `FACTS` of `trial_files`.
    weights: switch weights of every trial and epoch: the columns of `switch_weights.parquet`, text dictionary-encoded.
        The column statistic holds the names of the axes of `space`, the column normalizer those of its members.
    switch: the rows of each trial's last epoch with the trial's key, of backbones alone.
    heads: the same of all other roles: FPN, box head, mask head, decoder.
    switch_epochs: means over the layers of the backbone: key, epoch, scope ("network", "stage 1"), statistic,
        normalizer, weight.
    curves: metrics by epoch: key, epoch, name, value.
    seed_runs: the same for runs in which one seed alone is varied (`seeds.apart`); they are compared with each other.
    unplanned: keys of trials on disk that are not in the plan.
    plan: the plan of the analysis that was recorded when the study first ran, with its amendments; None where an older
        version ran it.
    """

    folder: StudyFolder
    study: StudyConfig
    space: ChoiceSpace
    provenance: dict[str, Any]
    trials: pd.DataFrame
    seed_runs: pd.DataFrame
    weights: pa.Table
    switch: pd.DataFrame
    heads: pd.DataFrame
    switch_epochs: pd.DataFrame
    curves: pd.DataFrame
    unplanned: tuple[str, ...]
    plan: PlanRecord | None = None

    @cached_property
    def profiles(self) -> Profiles:
        """What the backbone of each network chose in the last epoch, by key."""
        return build_profiles(self.switch, self.space)

    @cached_property
    def co_varying(self) -> dict[str, list[str]]:
        """What else changes with each factor, in words; see `design_diagnostics.find_co_varying`."""
        if self.study.search:
            return {}
        cells = {trial.trial_id: trial for trial in plan_trials(self.study, self.space)}
        found = find_co_varying(self.study, list(cells.values()))
        return {factor: [name.replace("_", " ") for name in changes] for factor, changes in found.items()}

    @property
    def measures(self) -> dict[str, Measure]:
        """All kinds of numbers that answers about this study may hold, by name."""
        return build_measures(self.space)

    @property
    def from_scratch(self) -> pd.DataFrame:
        """The planned trials over which norms and factors are compared.

        Where a study varies how trials start, these are the trials from scratch: others have trained for longer, and a
        start rule may have fixed their choices. Without trials from scratch they are those of `fine_tune`.
        """
        levels = self.levels("start_rule") if "start_rule" in self.study.factors else []
        rule = next((rule for rule in ("scratch", "fine_tune") if rule in levels), None)
        from_scratch: pd.DataFrame = self.trials if rule is None else self.trials[self.trials["start_rule"].eq(rule)]
        return from_scratch

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `trials` with a result to compare."""
        done: pd.DataFrame = self.trials[self.trials["state"].eq("done")]
        return done

    @property
    def n_planned(self) -> int:
        return count_search_trials(self.study, self.n_repeated) if self.study.search else len(self.trials)

    @cached_property
    def n_repeated(self) -> int:
        """Suggestions of a search that repeat an earlier cell, whose trials are not trained again."""
        return self.folder.read_suggestions()[1]

    @property
    def n_finished(self) -> int:
        """Trials with a result; a diverged run is one."""
        return int(self.trials["state"].isin(FINISHED).sum())

    @property
    def is_interim(self) -> bool:
        """Whether planned trials have not ended yet, so that answers carry no verdict."""
        return int(self.trials["state"].isin(ENDED).sum()) < self.n_planned

    @cached_property
    def plan_changes(self) -> PlanChanges:
        """What has changed of the plan of the analysis since it was recorded."""
        if self.plan is None:
            return PlanChanges(recorded=None)
        unrecorded = find_changes(self.plan.latest, resolve_analysis_plan(self.study))
        return PlanChanges(recorded=self.plan, amendments=tuple(self.plan.amendments), unrecorded=unrecorded)

    @cached_property
    def look(self) -> int:
        """The number of the look at the data: 1 for the planned runs, one more each time that these were changed."""
        changes = self.plan_changes
        unrecorded = changes_runs(changes.unrecorded) and self.n_finished > 0
        return 1 + sum(amendment.changes_runs for amendment in changes.amendments) + unrecorded

    @property
    def confidence(self) -> float:
        """The confidence level of this look's intervals: 95, 97.5, 98.75 % and so on.

        A false verdict lies on one side of its interval: at 95 %, look 1 gives one in 2.5 % of studies, and all looks
        together in less than 5 %.
        """
        error: float = (1 - self.study.analysis.confidence) / 2 ** (self.look - 1)
        return 1 - error

    @cached_property
    def changed_after_results(self) -> dict[str, Change]:
        """What decides verdicts and was changed after there were results: the planned value, and the one now.

        These are settings, and planned runs that were taken away: without the norm that won, another verdict follows.
        """
        if self.plan is None or not self.plan.is_before_data:
            return {}
        planned, changes = self.plan.before_results, self.plan_changes
        late = [each.changes for each in changes.amendments if each.results]
        late += [changes.unrecorded] * (self.n_finished > 0)
        late_keys = {key for each in late for key in each if key in planned}
        found = find_changes(planned, resolve_analysis_plan(self.study))
        changed = {key: change for key, change in found.items() if key in late_keys}
        return {key: changed[key] for key in DECIDING if key in changed} | find_removed(changed)

    @property
    def as_planned(self) -> StudyRecords:
        """The records with the planned values of what decides verdicts. Runs that were taken away are read again."""
        changed = self.changed_after_results
        settings = {key: changed[key][0] for key in DECIDING if key in changed}
        analysis = AnalysisConfig.model_validate({**self.study.analysis.model_dump(mode="json"), **settings})
        if self.plan is None or not find_removed(changed):
            return replace(self, study=self.study.model_copy(update={"analysis": analysis}))
        planned = self.plan.before_results
        runs = {key: value for key, value in planned.items() if key in ("factors", "blocks", "replicates")}
        return replace(load_study_records(self.folder, analysis, runs), plan=replace(self.plan, amendments=()))

    def margin(self, measure: str) -> float:
        """The smallest difference that counts as practical: `study.plan.margins.compute_margin`."""
        return compute_margin(self.study, measure)

    @property
    def reference_norm(self) -> str | None:
        """The norm of the networks whose choices are studied.

        That is `sn`, else the first switch norm without a control, if any; where layers choose from something other
        than normalizers, it is the first norm of the study.
        """
        if self.space != NORMALIZATION:
            return str(self.levels("norm")[0])
        specs = {norm: parse_norm(norm) for norm in self.levels("norm")}
        free = [norm for norm, spec in specs.items() if spec.is_switch and spec.control is None]
        return "sn" if "sn" in free else next(iter(free), None)

    def balanced_subset(self, trials: pd.DataFrame, *axes: str) -> pd.DataFrame:
        """The planned trials over which levels of the axes can be compared by means over all other factors.

        All trials of a crossed study. In a study of blocks, those at the combination of the other factors' levels that
        holds the most cells, which is the base's.
        """
        if not self.study.blocks:
            return trials
        others = cell_numbers(trials, [factor for factor in self.study.factors if factor not in axes])
        sizes = cell_numbers(trials, axes).groupby(others).nunique()
        found: pd.DataFrame = trials[others.map(sizes).eq(sizes.max())]
        return found

    def levels(self, factor: str) -> list[Any]:
        """The levels of a factor in the study's order; of another column, such as `norm`, the values of the trials."""
        listed = self.study.factors.get(factor)
        if isinstance(listed, list):
            return listed
        found = list(self.trials[factor].dropna().unique())
        return sorted(found) if listed else found or [getattr(self.study.base, factor)]


def load_study_records(
    folder: StudyFolder, analysis: AnalysisConfig | None = None, runs: Mapping[str, Any] | None = None
) -> StudyRecords:
    """Reads a study of any completeness: no trials, one, some, all.

    analysis: settings in place of those in `study.yaml`; None for these. runs: the same for the planned runs.
    Raises `UserError` where `study.yaml` is missing or does not hold a study. A damaged trial is a row of state
    `damaged`, as is one that was trained on other data than most; a replicate that repeats the numbers of another one
    is `repeated`.
    """
    content = read_study(folder)
    settings = {**(runs or {}), "analysis": analysis or content.study.analysis}
    study, space = content.study.model_copy(update=settings), content.space
    on_disk = list(folder.trials())
    planned = _plan_trials(folder, study, space, on_disk)
    trials = [read_trial(trial, plan, space) for trial, plan in planned]
    mark_other_data(trials)
    planned_paths = {trial.path for trial, _ in planned}
    weights = join_weights((trial.row["key"], trial.weights) for trial in trials if trial.weights is not None)
    table, curves = build_trial_table(trials, list(study.factors)), _join_curves(trials)
    repeated = find_duplicates(table, weights, curves)
    if not repeated.empty:
        keys = table["key"][repeated.index]
        weights = weights.filter(pc.invert(pc.is_in(weights["key"].cast(pa.string()), pa.array(keys, pa.string()))))
        table, curves = mark_duplicates(table, repeated), curves[~curves["key"].isin(keys)].reset_index(drop=True)
    backbone, heads = split_roles(weights)
    is_seed_run = table["replicate"].map(lambda number: number is not None and number >= MAX_REPLICATES).astype(bool)
    return StudyRecords(
        folder=folder, study=study, space=space, provenance=content.provenance, plan=content.plan,
        trials=table[~is_seed_run], seed_runs=table[is_seed_run],
        weights=weights.drop_columns("key"), switch=select_last_epochs(backbone), heads=select_last_epochs(heads),
        switch_epochs=compute_epoch_means(backbone), curves=curves,
        unplanned=tuple(build_key(trial) for trial in on_disk if trial.path not in planned_paths),
    )  # fmt: skip


def read_study(folder: StudyFolder) -> StudyFile:
    """The study of a folder, what layers choose from, its provenance, and the plan of its analysis.

    Raises `UserError` where the folder holds no study, or a damaged one.
    """
    if not folder.config.exists():
        beside = sorted(path.parent.name for path in folder.path.parent.glob("*/study.yaml"))
        nearest = f"; {allowed_names(folder.path.name, beside)}" if beside else ""
        raise UserError(f"{folder.config}: no study here{nearest}")
    return read_study_file(folder.config)


def _plan_trials(
    folder: StudyFolder, study: StudyConfig, space: ChoiceSpace, on_disk: list[TrialFolder]
) -> list[tuple[TrialFolder, PlannedTrial | None]]:
    """The planned trials with their folders; of a search, the trials that are on disk."""
    if study.search:
        found = [(trial, read_search_plan(study, trial)) for trial in on_disk]
        return [(trial, plan and replace(plan, space=space)) for trial, plan in found]
    return [(folder.trial(plan.trial_id, plan.replicate), plan) for plan in plan_trials(study, space)]


def _join_curves(trials: list[TrialRecord]) -> pd.DataFrame:
    rows = [row for trial in trials for row in trial.curves]
    curves: pd.DataFrame = pd.DataFrame(rows, columns=["key", "epoch", "name", "value"])
    return curves
