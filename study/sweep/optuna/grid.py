"""The Optuna study of a grid: shows the results of all cells of the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from study.config.schema import StudyConfig
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import StudyFolder
from study.sweep.optuna.base import (
    build_distributions,
    compute_objective,
    encode_levels,
    open_optuna_study,
    user_attributes,
)
from study.sweep.optuna.bulk_insert import add_trials, read_attribute, remove_trials
from study.sweep.optuna.retry import StorageRetry


class GridStudy:
    """All trials of the plan, in one round. A trial is added to the Optuna study when its record is finished.

    The records are the truth: an Optuna study that is lost, or does not fit the plan, is written again from them.
    """

    def __init__(
        self, study: StudyConfig, folder: StudyFolder, storage: optuna.storages.RDBStorage, retry: StorageRetry
    ) -> None:
        self.folder, self.trials, self.retry, self.engine = folder, plan_trials(study), retry, storage.engine
        self.total = len(self.trials)
        self.metric = study.metric
        self.distributions = build_distributions(study)
        self.optuna_study = open_optuna_study(study, folder, storage, "maximize")
        self.study_id = storage.get_study_id_from_name(study.name)
        self._remove_trials_of_other_factors()
        self.written = self._read_keys()
        self.pending: dict[str, FrozenTrial] = {}

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        yield self.trials
        self.retry.run_until_ok(self._write)

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        if trial.key in self.written:
            return
        record = self.folder.trial(trial.trial_id, trial.replicate)
        self.pending[trial.key] = create_trial(
            params=encode_levels(trial.levels),
            distributions=self.distributions,
            value=compute_objective([result], self.metric, "maximize"),
            user_attrs={"key": trial.key, **user_attributes([trial], [record], [result])},
        )

    def flush(self) -> None:
        self.retry.try_once(self._write)

    def best(self) -> str:
        return ""

    def find_prune_epoch(self, trial: PlannedTrial) -> int | None:
        return None  # every cell of a grid is wanted

    def _write(self) -> None:
        if self.retry.is_waiting:  # the failed attempt may have been committed although its reply was lost
            self.written = self._read_keys()
        new = [trial for key, trial in self.pending.items() if key not in self.written]
        if new:
            add_trials(self.engine, self.study_id, new)
        self.written.update(self.pending)
        self.pending.clear()

    def _read_keys(self) -> set[Any]:
        return read_attribute(self.engine, self.study_id, "key")

    def _remove_trials_of_other_factors(self) -> None:
        """Empties the Optuna study if a factor has gained levels: Optuna cannot widen a categorical parameter."""
        choices = {factor: str(list(each.choices)) for factor, each in self.distributions.items()
                   if isinstance(each, CategoricalDistribution)}  # fmt: skip
        factors = json.dumps(choices, sort_keys=True)
        if self.optuna_study.user_attrs.get("factors", factors) != factors:
            remove_trials(self.engine, self.study_id)
        self.optuna_study.set_user_attr("factors", factors)
