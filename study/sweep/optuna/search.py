"""The Optuna study of a search: a sampler suggests cells, a pruner ends trials early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial

from study.config.errors import UserError
from study.config.schema import StudyConfig
from study.config.seeds import derive_seed
from study.config.wording import format_repeats
from study.plan.trials import PlannedTrial, count_search_trials, plan_trial
from study.record.contents import DamagedFileError, read_metrics
from study.record.io import write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.optuna.base import (
    WORST,
    build_distributions,
    compute_objective,
    decode_levels,
    encode_levels,
    open_optuna_study,
    user_attributes,
)
from study.sweep.optuna.retry import StorageRetry


class SearchStudy:
    """Cells suggested by an Optuna sampler. A cell is an Optuna trial; its value is the mean over its replicates.

    A cell that is suggested again is not trained again: the second Optuna trial has the value of the first.
    Suggestion n is drawn with a seed of its own, after the results of all earlier rounds are recorded and before any
    of its own round: suggestions depend neither on the number of workers nor on interruptions.
    """

    def __init__(
        self, study: StudyConfig, folder: StudyFolder, storage: optuna.storages.RDBStorage, retry: StorageRetry
    ) -> None:
        assert study.search is not None
        self.study, self.folder, self.settings, self.retry, self.storage = study, folder, study.search, retry, storage
        self.distributions = build_distributions(study)
        self.optuna_study = open_optuna_study(study, folder, storage, study.search.direction)
        self.pruner = optuna.pruners.MedianPruner() if study.search.pruner == "median" else optuna.pruners.NopPruner()
        self.optuna_study.pruner = self.pruner
        self._check_distributions()
        self.study_id = storage.get_study_id_from_name(study.name)
        self.results: dict[str, dict[str, Any]] = {}
        self.optuna_trials: dict[int, Trial] = {}  # unfinished ones, by number
        self.repeated = 0  # suggestions so far that repeat an earlier cell

    @property
    def total(self) -> int:
        return count_search_trials(self.study, self.repeated)

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        self.repeated, seen = 0, set[str]()
        for start in range(0, self.settings.n_trials, self.settings.round_size):
            numbers = range(start, min(start + self.settings.round_size, self.settings.n_trials))
            cells = {number: self.retry.run_until_ok(partial(self._suggest, number)) for number in numbers}
            replicates = range(self.study.replicates)
            trials = {n: [plan_trial(self.study, cells[n], r) for r in replicates] for n in numbers}
            new = {trial.key: trial for group in trials.values() for trial in group if trial.key not in seen}
            seen.update(new)
            self.repeated += len(numbers) - len(new) // self.study.replicates
            self._write_suggestions(numbers.stop)
            yield list(new.values())
            for number in numbers:
                self.retry.run_until_ok(partial(self._write_result, number, trials[number]))

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        self.results[trial.key] = result

    def flush(self) -> None:
        """Does nothing: results are written when their round is complete."""

    def best(self) -> str:
        return self.retry.run_until_ok(self._format_best)

    def find_prune_epoch(self, trial: PlannedTrial) -> int | None:
        if self.settings.pruner == "none":
            return None
        curve = read_objective_curve(self.folder.trial(trial.trial_id, trial.replicate), self.settings.objective)
        found: list[int | None] = []
        self.retry.try_once(lambda: found.append(self._find_prune_epoch(trial, curve)))
        return found[0] if found else None  # None: checked again soon, and once more after the trial

    def _check_distributions(self) -> None:
        """Raises `UserError` for a search of an older version, which drew integers between ends without a point."""
        for trial in self.optuna_study.get_trials(deepcopy=False):
            for factor, distribution in trial.distributions.items():
                if isinstance(distribution, IntDistribution) and type(self.distributions[factor]) is FloatDistribution:
                    raise UserError(
                        f"{self.folder.path}: an older version has searched whole numbers of {factor}; "
                        "choose another folder with --out"
                    )

    # ------------------------------------------------------------------------------------------------------ suggestions

    def _write_suggestions(self, count: int) -> None:
        """Writes how many of the first `count` suggestions repeat a cell, unless a run that came further has."""
        if count > self.folder.read_suggestions()[0]:
            write_json(self.folder.suggestions, {"suggested": count, "repeated": self.repeated})

    def _suggest(self, number: int) -> dict[str, Any]:
        """Returns the levels of cell `number`; completes a suggestion that a kill or a lost connection cut short."""
        known = self.optuna_study.get_trials(deepcopy=False)
        if number < len(known) and known[number].state.is_finished():
            return decode_levels(self.study, known[number].params)
        self.optuna_study.sampler = self._build_sampler(number)
        trial = self._open_trial(number) if number < len(known) else self.optuna_study.ask()
        assert trial.number == number, "one driver writes to a study"
        _ = trial.relative_params  # drawn now, with this seed, and not with that of the first factor without a value
        for factor, distribution in self.distributions.items():
            self.optuna_study.sampler = self._build_sampler(number, factor)
            _suggest_value(trial, factor, distribution)
        self.optuna_trials[number] = trial
        return decode_levels(self.study, trial.params)

    def _open_trial(self, number: int) -> Trial:
        """Returns an unfinished trial that is in the storage; `Study.ask` only creates new ones."""
        return Trial(self.optuna_study, self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number))

    def _build_sampler(self, *counter: int | str) -> optuna.samplers.BaseSampler:
        seed = derive_seed("search", *counter) % 2**32
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    # ---------------------------------------------------------------------------------------------------------- results

    def _write_result(self, number: int, trials: list[PlannedTrial]) -> None:
        """Finishes a cell's Optuna trial: complete, pruned, or failed if a replicate has no result."""
        results = [self.results[trial.key] for trial in trials if trial.key in self.results]
        if self.optuna_study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if len(results) < len(trials):
            self.optuna_study.tell(number, state=TrialState.FAIL)
            return
        pruned_at = self._write_attributes(number, trials, results)
        if pruned_at is not None:
            self.optuna_study.tell(number, state=TrialState.PRUNED)
            return
        self.optuna_study.tell(number, compute_objective(results, self.settings.objective, self.settings.direction))

    def _write_attributes(self, number: int, trials: list[PlannedTrial], results: list[dict[str, Any]]) -> int | None:
        """Writes a cell's attributes and learning curve, for the dashboard and the pruner; returns its prune epoch.

        A trial that ended before the pruner could stop it counts as pruned all the same: timing must not matter.
        """
        optuna_trial = self.optuna_trials[number]
        records = [self.folder.trial(trial.trial_id, trial.replicate) for trial in trials]
        for name, value in user_attributes(trials, records, results).items():
            optuna_trial.set_user_attr(name, value)
        if len(trials) > 1:
            return None
        curve = read_objective_curve(records[0], self.settings.objective)
        pruned_at = self._find_prune_epoch(trials[0], curve)
        for epoch, value in curve.items():
            if pruned_at is None or epoch <= pruned_at:
                optuna_trial.report(value, epoch)
        return pruned_at

    def _find_prune_epoch(self, trial: PlannedTrial, curve: dict[int, float]) -> int | None:
        """Compares a curve with those of earlier rounds only, so that the order of ends does not matter."""
        for epoch in sorted(curve):
            frozen = create_trial(
                state=TrialState.RUNNING,
                params=encode_levels(trial.levels),
                distributions=self.distributions,
                intermediate_values={e: value for e, value in curve.items() if e <= epoch},
            )
            if self.pruner.prune(self.optuna_study, frozen):
                return epoch
        return None

    def _format_best(self) -> str:
        if not any(trial.state == TrialState.COMPLETE for trial in self.optuna_study.get_trials(deepcopy=False)):
            return ""
        best = self.optuna_study.best_trial
        if best.value == WORST[self.settings.direction]:
            statuses = Counter(result["status"] for result in self.results.values())
            found = f"no trial has a value: {', '.join(f'{n} {status}' for status, n in statuses.items())}"
        else:
            levels = ", ".join(f"{factor}={level}" for factor, level in best.params.items())
            found = f"{best.value:.4g} at {levels} ({best.user_attrs['trial_id']})"
        return f"best {self.settings.objective}: {found}{format_repeats(self.repeated)}"


def read_objective_curve(record: TrialFolder, objective: str) -> dict[int, float]:
    """Returns epoch -> objective, from a trial's metrics; empty where they are damaged."""
    try:
        rows = read_metrics(record.metrics)
    except DamagedFileError:
        return {}
    return {row["epoch"]: row["value"] for row in rows if row["name"] == objective and row["value"] is not None}


def _suggest_value(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
