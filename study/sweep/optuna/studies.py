"""Optuna's side of a study: the mirror of a grid, and the search that suggests cells.

The driver is the only writer. Records are the truth: an Optuna study that is lost or does not fit is made anew.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from study.config.errors import UserError
from study.config.schema import Range, StudyConfig
from study.config.seeds import derive_seed
from study.plan.trials import PlannedTrial, plan_trial, plan_trials
from study.record.environment import hide_passwords
from study.record.io import quarantine, read_metrics
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.optuna.bulk_insert import add_trials, remove_trials, stored_attributes
from study.sweep.optuna.retry import StorageRetry, raise_if_unavailable, reason

WORST = {"maximize": -1e9, "minimize": 1e9}  # stands for a diverged trial: Optuna takes NaN for a crash


class TrialSource(Protocol):
    """Where the driver takes trials from and tells their results to."""

    total: int

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        """Trials that may run side by side; the next round is asked for when all of this one have ended."""

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        """Takes in the result of a finished trial."""

    def flush(self) -> None:
        """Writes what was told, if the storage answers; what it leaves is written later, all of it with the round."""

    def best(self) -> str:
        """What a search has found, in a line; empty for a grid, which the report is for."""

    def prune_at(self, trial: PlannedTrial, values: dict[int, float]) -> int | None:
        """The epoch at which a trial with these objective values should have ended, or None."""


_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, RuntimeError, ValueError)
OPENING_SECONDS = 5.0  # a server may be starting up
# Short: the driver has trials to look after. `tcp_user_timeout` (ms) is for a network that swallows what is sent.
_CONNECT = {"sqlite": {"timeout": 1}, "postgresql": {"connect_timeout": 5, "tcp_user_timeout": 10_000}}


def check_storage(url: str) -> None:
    """Raises `UserError`, without the password, for a storage that does not open within a few seconds."""
    name = f"--storage {hide_passwords(url)}"
    try:
        StorageRetry(name, print, limit=OPENING_SECONDS).run_until_ok(lambda: _connect(url))
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name}: a Python package is missing: {error.__cause__ or error}; for PostgreSQL: "
                        "pip install 'psycopg[binary]'") from None  # fmt: skip
    except _STORAGE_ERRORS as error:
        raise UserError(f"{name}: cannot be opened: {reason(error)}") from None


def open_trial_source(
    study: StudyConfig, folder: StudyFolder, url: str | None, say: Callable[[str], object] = print
) -> TrialSource:
    """The grid's mirror, or the search, in the study's own SQLite file or in the storage at `url`.

    A damaged file of the study's own is set aside and made anew from the records.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    build = GridStudy if study.search is None else SearchStudy
    if url is not None:
        patience = StorageRetry(f"--storage {hide_passwords(url)}", say)
        storage = patience.run_until_ok(lambda: _connect(url))
        patience.run_until_ok(lambda: _check_owner(study.name, storage, folder))
        return patience.run_until_ok(lambda: build(study, folder, storage, patience))
    own, patience = f"sqlite:///{folder.storage}", StorageRetry(str(folder.storage), say)
    try:
        return patience.run_until_ok(lambda: build(study, folder, _connect(own), patience))
    except UserError:
        raise
    except _STORAGE_ERRORS:
        say(f"{folder.storage}: damaged, set aside as {quarantine(folder.storage).name}; made anew from the records")
        return build(study, folder, _connect(own), patience)


def _connect(url: str) -> optuna.storages.RDBStorage:
    parsed = make_url(url)
    if re.match(r"[^:]+://[^:/@]*:[^@]*[/@][^?]*@", url):
        # It would be read wrongly, and an error could tell a part of it.
        raise ValueError("in a password, @ is written as %40, / as %2F, : as %3A and % as %25")
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = {"pool_pre_ping": True, "connect_args": dict(_CONNECT.get(parsed.get_backend_name(), {}))}
    storage = optuna.storages.RDBStorage(parsed.render_as_string(hide_password=False), engine_kwargs=options)
    raise_if_unavailable(storage.engine)
    return storage


class GridStudy:
    """All cells of the plan. Optuna only shows them; a trial is added when its record is finished."""

    def __init__(
        self, study: StudyConfig, folder: StudyFolder, storage: optuna.storages.RDBStorage, patience: StorageRetry
    ) -> None:
        self.folder, self.trials, self.patience = folder, plan_trials(study), patience
        self.total = len(self.trials)
        self.distributions = _distributions(study)
        self.metric = study.metric
        self.engine = storage.engine
        shape = json.dumps({factor: str(levels) for factor, levels in study.factors.items()}, sort_keys=True)
        self.optuna = _open(study, storage, "maximize", folder)
        if self.optuna.user_attrs.get("factors", shape) != shape:
            # Optuna cannot widen a categorical parameter: a study that has gained levels is mirrored anew.
            remove_trials(self.optuna, self.engine)
        self.optuna.set_user_attr("factors", shape)
        self.recorded = stored_attributes(self.optuna, self.engine, "key")
        self.pending: dict[str, FrozenTrial] = {}

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        yield self.trials
        self.patience.run_until_ok(self._write)

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        if trial.key in self.recorded:
            return
        record = self.folder.trial(trial.trial_id, trial.replicate)
        self.pending[trial.key] = create_trial(
            params=trial.levels,
            distributions=self.distributions,
            value=_objective(result, self.metric, "maximize"),
            user_attrs={"key": trial.key, **_attributes([trial], [record], [result])},
        )

    def flush(self) -> None:
        self.patience.try_once(self._write)

    def _write(self) -> None:
        if self.patience.pause:  # a commit may have come through, and only its answer been lost
            self.recorded = stored_attributes(self.optuna, self.engine, "key")
        new = [trial for key, trial in self.pending.items() if key not in self.recorded]
        if new:
            add_trials(self.optuna, self.engine, new)
        self.recorded.update(self.pending)
        self.pending.clear()

    def best(self) -> str:
        return ""

    def prune_at(self, trial: PlannedTrial, values: dict[int, float]) -> int | None:
        return None  # every cell of a grid is wanted


class SearchStudy:
    """Cells suggested by an Optuna sampler, an Optuna trial each; its value is the mean over the cell's replicates.

    Suggestion n is drawn with a seed of its own, when all earlier rounds are told and none of its own is: what is
    suggested depends neither on how many workers there are nor on what was interrupted.
    """

    def __init__(
        self, study: StudyConfig, folder: StudyFolder, storage: optuna.storages.RDBStorage, patience: StorageRetry
    ) -> None:
        assert study.search is not None
        self.study, self.folder, self.settings, self.patience = study, folder, study.search, patience
        self.total = study.search.n_trials * study.replicates
        self.distributions = _distributions(study)
        self.optuna = _open(study, storage, study.search.direction, folder)
        self.pruner = optuna.pruners.MedianPruner() if study.search.pruner == "median" else optuna.pruners.NopPruner()
        self.optuna.pruner = self.pruner
        self.results: dict[str, dict[str, Any]] = {}

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        for start in range(0, self.settings.n_trials, self.settings.round_size):
            numbers = range(start, min(start + self.settings.round_size, self.settings.n_trials))
            cells = {number: self.patience.run_until_ok(partial(self._suggest, number)) for number in numbers}
            replicates = range(self.study.replicates)
            trials = {n: [plan_trial(self.study, cells[n], r) for r in replicates] for n in numbers}
            yield list({trial.key: trial for group in trials.values() for trial in group}.values())
            for number in numbers:
                self.patience.run_until_ok(partial(self._record_result, number, trials[number]))

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        self.results[trial.key] = result  # told when the round is complete

    def flush(self) -> None:
        pass

    def best(self) -> str:
        return self.patience.run_until_ok(self._best)

    def _best(self) -> str:
        if not any(trial.state == TrialState.COMPLETE for trial in self.optuna.get_trials(deepcopy=False)):
            return ""
        best = self.optuna.best_trial
        levels = ", ".join(f"{factor}={level}" for factor, level in best.params.items())
        return f"best {self.settings.objective}: {best.value:.4g} at {levels} ({best.user_attrs['trial_id']})"

    def prune_at(self, trial: PlannedTrial, values: dict[int, float]) -> int | None:
        """Compares with the trials of earlier rounds only, so that the answer does not depend on who is faster."""
        found: list[int | None] = []
        self.patience.try_once(lambda: found.append(self._prune_at(trial, values)))
        return found[0] if found else None  # asked again soon, and once more when the trial has ended

    def _prune_at(self, trial: PlannedTrial, values: dict[int, float]) -> int | None:
        for epoch in sorted(values):
            frozen = create_trial(
                state=TrialState.RUNNING,
                params=trial.levels,
                distributions=self.distributions,
                intermediate_values={e: value for e, value in values.items() if e <= epoch},
            )
            if self.pruner.prune(self.optuna, frozen):
                return epoch
        return None

    def _suggest(self, number: int) -> dict[str, Any]:
        known = self.optuna.get_trials(deepcopy=False)
        if number < len(known) and known[number].state.is_finished():
            return dict(known[number].params)
        self.optuna.sampler = self._sampler(number)
        # A kill, or a storage that was away, may have left a trial without all of its parameters: it is taken up again.
        trial = optuna.trial.Trial(self.optuna, known[number]._trial_id) if number < len(known) else self.optuna.ask()
        assert trial.number == number, "one driver writes to a study"
        _ = trial.relative_params  # drawn now, not with the seed of whichever factor is the first without a value
        for factor, distribution in self.distributions.items():
            self.optuna.sampler = self._sampler(number, factor)
            trial._suggest(factor, distribution)  # what `ask` does with its distributions
        return dict(trial.params)

    def _sampler(self, *counter: int | str) -> optuna.samplers.BaseSampler:
        seed = derive_seed("search", *counter) % 2**32
        if self.settings.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    def _record_result(self, number: int, trials: list[PlannedTrial]) -> None:
        results = [self.results[trial.key] for trial in trials if trial.key in self.results]
        if self.optuna.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if len(results) < len(trials):  # a replicate failed for good
            self.optuna.tell(number, state=TrialState.FAIL)
            return
        pruned_at = self._attach(number, trials, results)
        if pruned_at is not None:
            self.optuna.tell(number, state=TrialState.PRUNED)
            return
        values = [_objective(result, self.settings.objective, self.settings.direction) for result in results]
        self.optuna.tell(number, sum(values) / len(values))

    def _attach(self, number: int, trials: list[PlannedTrial], results: list[dict[str, Any]]) -> int | None:
        """Attributes and learning curve of a cell, for the dashboard and for the pruner; the epoch it is pruned at.

        A trial that was faster than the pruner counts as pruned all the same: who was faster must not matter.
        """
        trial = optuna.trial.Trial(self.optuna, self.optuna.get_trials(deepcopy=False)[number]._trial_id)
        folders = [self.folder.trial(planned.trial_id, planned.replicate) for planned in trials]
        for name, value in _attributes(trials, folders, results).items():
            trial.set_user_attr(name, value)
        if len(trials) > 1:
            return None
        curve = objective_curve(folders[0], self.settings.objective)
        pruned_at = self._prune_at(trials[0], curve)
        for epoch, value in curve.items():
            if pruned_at is None or epoch <= pruned_at:
                trial.report(value, epoch)
        return pruned_at


def objective_curve(folder: TrialFolder, name: str) -> dict[int, float]:
    """Epoch to objective, from a trial's metrics."""
    return {
        row["epoch"]: row["value"]
        for row in read_metrics(folder.metrics)
        if row["name"] == name and row["value"] is not None
    }


def _open(
    study: StudyConfig, storage: optuna.storages.BaseStorage, direction: Any, folder: StudyFolder
) -> optuna.Study:
    opened = optuna.create_study(study_name=study.name, storage=storage, direction=direction, load_if_exists=True)
    opened.set_user_attr("folder", str(folder.path.resolve()))
    return opened


def _check_owner(name: str, storage: optuna.storages.BaseStorage, folder: StudyFolder) -> None:
    """Raises `UserError` where a shared storage holds another folder's study of this name."""
    if name not in optuna.get_all_study_names(storage):
        return
    owner = optuna.load_study(study_name=name, storage=storage).user_attrs.get("folder")
    if owner != str(folder.path.resolve()):
        raise UserError(
            f"--storage: the study {name} in it belongs to {owner}; take another storage or --set name=NAME"
        )


def _distributions(study: StudyConfig) -> dict[str, BaseDistribution]:
    return {factor: _distribution(levels) for factor, levels in study.factors.items()}


def _distribution(levels: list[Any] | Range) -> BaseDistribution:
    if isinstance(levels, list):
        return CategoricalDistribution(levels)
    if isinstance(levels.low, int) and isinstance(levels.high, int):
        return IntDistribution(levels.low, levels.high, log=levels.log)
    return FloatDistribution(levels.low, levels.high, log=levels.log)


def _objective(result: dict[str, Any], name: str, direction: str) -> float:
    value = result["metrics"].get(name)
    return WORST[direction] if value is None else float(value)


def _attributes(
    trials: Sequence[PlannedTrial], records: Sequence[TrialFolder], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the Optuna dashboard shows beside the parameters: of one trial, or of all replicates of a cell together.

    For several, switch weights are their means, and the record is the folder that holds all of theirs.
    """
    weights: dict[str, list[float]] = {}
    for result in results:
        for name, value in result["metrics"].items():
            if name.startswith("switch/") and value is not None:
                weights.setdefault(name, []).append(value)
    return {
        "trial_id": trials[0].trial_id,
        "replicates": [trial.replicate for trial in trials],
        "status": ", ".join(sorted({result["status"] for result in results})),
        "record": str(records[0].path if len(records) == 1 else records[0].path.parent),
        "switch_weights": {name: sum(values) / len(values) for name, values in weights.items()},
    }
