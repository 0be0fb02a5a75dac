"""The interface between the driver and the Optuna study, and what grids and searches share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from study.config.schema import Range, StudyConfig
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder, TrialFolder

Direction = Literal["maximize", "minimize"]
WORST = {"maximize": -1e9, "minimize": 1e9}  # the value of a diverged trial; Optuna takes NaN for a crash


class TrialSource(Protocol):
    """Where the driver takes trials from and records their results: an Optuna study.

    Attributes:
        total: Number of trials of the whole study. That of a search falls with each suggestion that repeats a cell.
    """

    @property
    def total(self) -> int: ...

    def rounds(self) -> Iterator[list[PlannedTrial]]:
        """Yields lists of trials that can run in parallel; all of a list must end before the next is requested."""

    def record_result(self, trial: PlannedTrial, result: dict[str, Any]) -> None:
        """Takes the result of a finished trial, to be written later."""

    def flush(self) -> None:
        """Writes the results taken so far if the storage answers; otherwise a later call, or the round's end, does."""

    def best(self) -> str:
        """Returns a line with what a search has found; empty for a grid, which the report is for."""

    def find_prune_epoch(self, trial: PlannedTrial) -> int | None:
        """Returns the epoch at which the pruner ends a running trial, or None."""


def open_optuna_study(
    study: StudyConfig, folder: StudyFolder, storage: optuna.storages.BaseStorage, direction: Direction
) -> optuna.Study:
    """Loads or creates the study's Optuna study, and notes which folder it belongs to."""
    opened = optuna.create_study(study_name=study.name, storage=storage, direction=direction, load_if_exists=True)
    opened.set_user_attr("folder", str(folder.path.resolve()))
    return opened


def build_distributions(study: StudyConfig) -> dict[str, BaseDistribution]:
    """Returns an Optuna distribution for every factor."""
    return {factor: _build_distribution(levels) for factor, levels in study.factors.items()}


def _build_distribution(levels: list[Any] | Range) -> BaseDistribution:
    if isinstance(levels, list):
        return CategoricalDistribution([_encode_level(level) for level in levels])
    if isinstance(levels.low, int) and isinstance(levels.high, int):
        return IntDistribution(levels.low, levels.high, log=levels.log)
    return FloatDistribution(levels.low, levels.high, log=levels.log)


def encode_levels(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns levels as parameters that a storage reads back unchanged: a list as JSON, which it would not."""
    return {factor: _encode_level(level) for factor, level in levels.items()}


def decode_levels(study: StudyConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the levels that `encode_levels` has made parameters of."""
    known = {factor: levels for factor, levels in study.factors.items() if isinstance(levels, list)}
    return {
        factor: next((level for level in known.get(factor, []) if _encode_level(level) == value), value)
        for factor, value in parameters.items()
    }


def _encode_level(level: Any) -> Any:
    return json.dumps(level) if isinstance(level, (list, tuple)) else level


def compute_objective(results: Sequence[dict[str, Any]], name: str, direction: Direction) -> float:
    """Returns the mean objective of a cell's results; the worst value if one of them has none, as it diverged."""
    values = [result["metrics"].get(name) for result in results]
    return WORST[direction] if None in values else sum(values) / len(values)


def user_attributes(
    trials: Sequence[PlannedTrial], records: Sequence[TrialFolder], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what the Optuna dashboard shows besides the parameters, of one trial or of all replicates of a cell.

    Over replicates, switch weights are averaged and the record is the folder that holds all of their records.
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
