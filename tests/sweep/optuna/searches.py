"""A search whose objective is a known function, in place of training."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import optuna

from study.config.schema import StudyConfig
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from study.sweep.optuna.base import TrialSource
from study.sweep.optuna.connection import open_trial_source


def search(sampler: str = "tpe", n_trials: int = 14, **settings: object) -> StudyConfig:
    """A search in rounds of two cells. TPE draws its first ten suggestions at random."""
    settings = {"sampler": sampler, "n_trials": n_trials, "round_size": 2, **settings}
    overrides = [f"search.{name}={value}" for name, value in settings.items()]
    space = ["factors.learning_rate={low: 0.01, high: 1.0, log: true}", "batch_size=[2, 4, 8, 16]", "norm=sn"]
    return load_study("depth_vs_batch", "smoke", [*overrides, *space])


def search_few_cells(n_trials: int = 8, **settings: object) -> StudyConfig:
    """A search over two list-valued levels, so that most suggestions repeat a cell."""
    space = ["factors.decay_milestones=[[0.5], [0.3, 0.6]]", "decay=step", "batch_size=16", "norm=sn"]
    overrides = [f"search.{name}={value}" for name, value in {"sampler": "random", "n_trials": n_trials}.items()]
    return load_study("depth_vs_batch", "smoke", [*overrides, *space, *(f"{k}={v}" for k, v in settings.items())])


def score(trial: PlannedTrial) -> float:
    return -abs(trial.config.learning_rate - 0.3) - trial.config.batch_size / 100


def result(value: float | None, status: str = "done") -> dict[str, Any]:
    return {"status": status, "metrics": {"val_accuracy": value, "switch/mean/bn": 0.25}}


def play(source: TrialSource, stop: int | None = None) -> list[str]:
    """Answers the rounds with scores; returns all suggestions. Ends inside round `stop`, as a killed driver would."""
    seen = []
    for number, trials in enumerate(source.rounds()):
        seen += [trial.key for trial in trials]
        if number == stop:
            return seen
        for trial in reversed(trials):
            source.record_result(trial, result(score(trial)))
    return seen


@functools.cache
def undisturbed_suggestions(sampler: str = "tpe", n_trials: int = 14) -> list[str]:
    """The suggestions of a search that nothing interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        return play(open_trial_source(search(sampler, n_trials), StudyFolder(Path(folder)), None))


def stored_trials(study: StudyConfig, url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study.name, storage=url).trials
