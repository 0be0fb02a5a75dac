"""Chooses the recipe of a scale: every norm gets the same candidates, on replicates that no study uses.

1. Recipe. Settings are chosen one after the other: the learning rate, the augmentation, zero_last_gamma and the weight
   decay. Every level is trained with every norm and at two B, with the settings chosen so far. The level with the
   highest validation accuracy is chosen: the mean over norms, each of which is the mean over B and replicates. Of
   levels that differ by less than half a percentage point, the first is chosen. A run that diverged counts at chance
   level.
2. Solvers. With this recipe, each other solver gets as many learning rates, with the norm sn at both B.
3. Reference. The chosen recipe is trained with every norm, at every depth of the scale and at both B, with as many
   replicates as a study has. The test accuracy is reported beside that of two simple classifiers of the pixels, fitted
   to the same training images. No choice depends on it.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from study.bench.result import Result
from study.config.datasets import DATASETS
from study.config.errors import UserError, allowed_names, parse_count
from study.config.schema import MAX_PROCESSES, StudyConfig, TrialConfig, trial_id
from study.config.seeds import MAX_REPLICATES, derive_seeds
from study.config.wording import format_plural
from study.data.load import load_splits
from study.plan.job import Job
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.record.layout import TrialFolder
from study.sweep.executors.local import LocalExecutor
from study.sweep.executors.resources import count_cores, find_devices

FIRST_REPLICATE = 100
"""Replicates from this number on choose recipes; those of a study count from 0."""
NORMS = ("sn", "bn", "gn", "in", "ln")
SOLVER_NORMS = ("sn",)
BATCH_SIZES = (2, 16)
NEGLIGIBLE = 0.005
"""Differences in accuracy below this one choose nothing: the first level is taken."""

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What the recipe of a scale is chosen from. The first level of a setting holds until it is chosen itself.

    settings: of the solver sgd, in the order in which they are chosen.
    learning_rates: of every other solver.
    """

    settings: Mapping[str, Sequence[Any]]
    learning_rates: Mapping[str, Sequence[float]]


def _build_candidates(augmentation: str) -> Candidates:
    return Candidates(
        settings={
            "learning_rate": (0.4, 0.8, 1.6),
            "augmentation": ("none", augmentation),
            "zero_last_gamma": (False, True),
            "weight_decay": (1e-4, 1e-3),
        },
        learning_rates={"adamw": (0.1, 0.3, 1.0), "rmsprop": (0.01, 0.03, 0.1)},
    )  # fmt: skip


CANDIDATES = {
    "smoke": _build_candidates("shift"),
    "laptop": _build_candidates("shift"),
    "workstation": _build_candidates("shift_flip"),
    "reference": _build_candidates("shift_flip"),
}


def measure(
    *,
    quick: bool,
    threads: int | None,
    device: str,
    scale: str = "laptop",
    set: Sequence[str] = (),
    out: str = "runs/bench",
    replicates: str = "1",
    workers: str | None = None,
) -> Result:
    """Trains the candidates of a scale, chooses, and trains the reference. A second run only trains what is missing."""
    if scale not in CANDIDATES:
        raise UserError(f"--scale {scale}: no candidates; {allowed_names(scale, CANDIDATES)}")
    runs = parse_count(replicates, f"--replicates {replicates}", MAX_REPLICATES - FIRST_REPLICATE)
    places = None if workers is None else parse_count(workers, f"--workers {workers}", MAX_PROCESSES)
    small = ["train_samples=64", "epochs=1", "epoch_steps=null"] if quick else []
    study = load_study("depth_vs_batch", scale, ["tracking.mode=disabled", *set, *small])
    if study.base.task != "classification":
        raise UserError(f"--set task={study.base.task}: allowed: classification")
    devices = find_devices(device)
    places = places or (count_cores() if device == "cpu" else len(devices))
    executor = LocalExecutor(places, devices, threads or 1)
    trainer = CandidateTrainer(study, Path(out) / "recipes" / scale, executor)
    try:
        return _choose(trainer, CANDIDATES[scale], runs, quick)
    finally:
        executor.close()


def _choose(trainer: CandidateTrainer, candidates: Candidates, replicates: int, quick: bool) -> Result:
    result = Result("recipes")
    reference_replicates = 1 if quick else trainer.study.replicates
    depth = [trainer.study.base.depth]
    recipe = {name: levels[0] for name, levels in candidates.settings.items()}
    for name, levels in candidates.settings.items():
        recipe = _choose_one(
            result, trainer, "recipe", [{name: level} for level in levels], recipe, NORMS, depth, replicates
        )
    for solver, rates in candidates.learning_rates.items():
        levels = [{"solver": solver, "learning_rate": rate} for rate in rates]
        _choose_one(result, trainer, "solver", levels, recipe, SOLVER_NORMS, depth, replicates)

    depths = trainer.study.factors["depth"]
    assert isinstance(depths, list)
    runs = trainer.train(recipe, NORMS, depths[:1] if quick else depths, reference_replicates)
    for depth_level, batch_size in dict.fromkeys((run.config.depth, run.config.batch_size) for run in runs):
        of_cell = [run for run in runs if (run.config.depth, run.config.batch_size) == (depth_level, batch_size)]
        tested = {norm: [run.test for run in of_cell if run.config.norm == norm] for norm in NORMS}
        result.rows.append(_build_row(
            "test accuracy", f"ResNet-{depth_level}, B = {batch_size}",
            {norm: _format_range(values) for norm, values in tested.items() if values},
            f"{statistics.mean(run.test for run in of_cell):.3f}",
        ))  # fmt: skip
    for name, accuracies in fit_simple_classifiers(runs[0].config, reference_replicates, trainer.study).items():
        result.rows.append(_build_row("test accuracy", name, {}, _format_range(accuracies)))
    result.notes.append(
        "recipe and solver: validation accuracy, the mean over B and replicates of each norm, and over norms. The "
        f"first level that is less than {NEGLIGIBLE:g} below the best one is chosen. test accuracy: mean (lowest to "
        f"highest) over replicates. Replicates are {FIRST_REPLICATE} and above. A norm without batch statistics is "
        "trained at one B if the gradient batch is the same at every B."
    )
    return result


def _choose_one(
    result: Result,
    trainer: CandidateTrainer,
    step: str,
    candidates: Sequence[Settings],
    recipe: Settings,
    norms: Sequence[str],
    depths: Sequence[int],
    replicates: int,
) -> dict[str, Any]:
    """Trains the candidates, adds a row for each of them, and returns the chosen one, with the settings of `recipe`."""
    scores = []
    for candidate in candidates:
        runs = trainer.train({**recipe, **candidate}, norms, depths, replicates)
        by_norm = compute_scores(runs)
        scores.append(statistics.mean(by_norm.values()))
        result.rows.append(_build_row(
            step, ", ".join(f"{name}={_format_setting(value)}" for name, value in candidate.items()),
            {norm: f"{score:.3f}" for norm, score in by_norm.items()}, f"{scores[-1]:.3f}",
        ))  # fmt: skip
    chosen = choose_level(scores)
    result.rows[chosen - len(candidates)][""] = "chosen"
    return {**recipe, **candidates[chosen]}


# ----------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Run:
    """A finished run of a candidate: its config, and its accuracy on the validation and the test split."""

    config: TrialConfig
    validation: float
    test: float


def choose_level(scores: Sequence[float]) -> int:
    """The first level whose accuracy is less than `NEGLIGIBLE` below the best one."""
    return next(number for number, score in enumerate(scores) if score > max(scores) - NEGLIGIBLE)


def compute_scores(runs: Sequence[Run]) -> dict[str, float]:
    """The validation accuracy of each norm: the mean over B of the mean over the runs at that B."""
    by_norm: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        by_norm.setdefault(run.config.norm, {}).setdefault(run.config.batch_size, []).append(run.validation)
    return {norm: statistics.mean(map(statistics.mean, by_batch.values())) for norm, by_batch in by_norm.items()}


def plan_candidate(
    study: StudyConfig, candidate: Settings, norms: Sequence[str], depths: Sequence[int], replicates: int
) -> list[PlannedTrial]:
    """The trials of a candidate: the base of `study` with its settings, at every norm, depth and B.

    A trial that would only repeat the numbers of another B is left out: the gradient batch is held, and no layer uses
    batch statistics.
    """
    study = study.model_copy(update={
        "base": study.base.model_copy(update=dict(candidate)),
        "factors": {"norm": [*norms], "depth": [*depths], "batch_size": [*BATCH_SIZES]},
        "joint": {}, "blocks": [], "replicates": replicates,
    })  # fmt: skip
    return [
        replace(trial, replicate=FIRST_REPLICATE + trial.replicate)
        for trial in plan_trials(study) if not _repeats_another(trial)
    ]  # fmt: skip


def _repeats_another(trial: PlannedTrial) -> bool:
    held = trial.config.fixed_gradient_batch is not None and not trial.config.sync_statistics
    return held and "bn" not in trial.pool and trial.config.batch_size != BATCH_SIZES[0]


class CandidateTrainer:
    """Trains candidates as trials of `study`, in `folder`, on replicates that no study uses."""

    def __init__(self, study: StudyConfig, folder: Path, executor: LocalExecutor) -> None:
        self.study, self.folder, self.executor = study, folder, executor
        self.console = Console(stderr=True, highlight=False)

    def train(self, candidate: Settings, norms: Sequence[str], depths: Sequence[int], replicates: int) -> list[Run]:
        """Trains a candidate with every norm, at every depth and B. Returns its runs, also those of earlier calls."""
        trials = plan_candidate(self.study, candidate, norms, depths, replicates)
        missing = [trial for trial in trials if TrialFolder(self._find_folder(trial)).read_result() is None]
        started, running, ended = time.monotonic(), 0, 0
        while ended < len(missing):
            while running < self.executor.places and running + ended < len(missing):
                self.executor.submit([self._build_job(missing[running + ended])])
                running += 1
            ended_now = len(self.executor.wait(60.0))
            running, ended = running - ended_now, ended + ended_now
        if missing:
            self.console.print(f"{format_plural(len(missing), 'trial')} in {time.monotonic() - started:.0f} s")
        return [self._read_run(trial) for trial in trials]

    def _find_folder(self, trial: PlannedTrial) -> Path:
        return self.folder / trial_id(trial.config, ["norm", "depth", "batch_size"]) / f"r{trial.replicate}"

    def _build_job(self, trial: PlannedTrial) -> Job:
        return Job(
            trial=trial, folder=self._find_folder(trial), study="recipes", run=self.study.run,
            environment={"host": platform.node()}, command="",
        )  # fmt: skip

    def _read_run(self, trial: PlannedTrial) -> Run:
        folder = TrialFolder(self._find_folder(trial))
        result = folder.read_result()
        if result is None:
            raise UserError(f"{folder.path}: {folder.status()[1]}")
        chance = 1 / DATASETS[trial.config.dataset].classes
        accuracies = (result["metrics"].get(f"{split}_accuracy") for split in ("val", "test"))
        return Run(trial.config, *(chance if accuracy is None else accuracy for accuracy in accuracies))


# ------------------------------------------------------------------------------------------- simple classifiers


def fit_simple_classifiers(config: TrialConfig, replicates: int, study: StudyConfig) -> dict[str, list[float]]:
    """The test accuracy of two classifiers of pixels at each replicate, fitted to the training images of a trial."""
    classifiers: dict[str, Callable[[], Any]] = {
        "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "3 nearest neighbours": lambda: KNeighborsClassifier(3),
    }
    accuracies: dict[str, list[float]] = {name: [] for name in classifiers}
    for replicate in range(FIRST_REPLICATE, FIRST_REPLICATE + replicates):
        splits = load_splits(config, derive_seeds(replicate)["split"], study.run.data_root, own_data=study.run.own_data)
        (train, labels), (test, expected) = (
            (part.images.flatten(1).numpy(), part.labels.numpy()) for part in (splits.train, splits.test)
        )
        for name, build in classifiers.items():
            accuracies[name].append(float(build().fit(train, labels).score(test, expected)))
    return accuracies


# -------------------------------------------------------------------------------------------------------- the table


def _build_row(step: str, what: str, by_norm: Mapping[str, str], mean: str) -> dict[str, Any]:
    return {"step": step, "candidate": what, **{norm: by_norm.get(norm, "") for norm in NORMS}, "mean": mean, "": ""}


def _format_range(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _format_setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
